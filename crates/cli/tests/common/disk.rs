//! A disk that loses what was not made durable, under a real process.
//!
//! The process runs under `strace`, which writes down each system call that changes
//! a file or makes it durable. After it was killed, what it did is replayed on a
//! model of its folder, and the folder is put as a disk may have it after a power
//! cut: all that was synced, and a chance part of what was not. A file's bytes are
//! durable by `fsync` of the file, its name by that of the folder; a call makes
//! durable what had ended before it began. What was not is there or not by sector,
//! by page, or up to some call, also as zeroes where the length was there first;
//! names come and go in their order, in each folder by itself.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::{Choices, pitser};

/// What is written down: whatever could change a file, so that none is missed.
const CALLS: &str = "open,openat,creat,close,dup,dup2,dup3,fcntl,lseek,write,pwrite64,writev,\
    pwritev,pwritev2,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,\
    rmdir,truncate,ftruncate,fallocate,mkdir,mkdirat,link,linkat,symlink,symlinkat";

/// Whether processes can be watched here.
pub(crate) fn is_there() -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "--seccomp-bpf", "true"]);
    let ran = strace.stdout(Stdio::null()).stderr(Stdio::null()).status();
    ran.is_ok_and(|status| status.success())
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is killed before it.
    Death,
    /// It fails, and is not done. One that was to make bytes durable fails as the
    /// system's own would: those bytes are taken for durable from then on.
    Refusal,
}

/// Runs what is added to it, and writes its calls to `log`. `fault`: what becomes of
/// which call, when a thread makes it for the so-manieth time.
pub(crate) fn strace(log: &Path, fault: Option<(Fault, &str, u64)>) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-xx", "-s", "100000000"]);
    strace.args(["-e", "signal=none", "-e", &format!("trace={CALLS}")]);
    match fault {
        Some((fault, call, times)) => {
            let fault = match fault {
                Fault::Death => "signal=KILL",
                Fault::Refusal => "error=EIO",
            };
            strace.args(["-e", &format!("inject={call}:{fault}:when={times}")])
        }
        // Only these calls are stopped at. It kills nobody then.
        None => strace.arg("--seccomp-bpf"),
    };
    strace.arg("-o").arg(log).arg("--");
    strace
}

/// `pitser`, in `dir`, under `strace`.
pub(crate) fn watched(log: &Path, fault: Option<(Fault, &str, u64)>, dir: &Path) -> Command {
    let plain = pitser(dir);
    let mut command = strace(log, fault);
    command.current_dir(dir).arg(plain.get_program());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Sends a signal to the `pitser` that `strace` watches, unless it has ended, and waits
/// for its end; whether it ended as it should.
pub(crate) fn end(strace: &mut Child, signal: &str) -> bool {
    let id = strace.id();
    let process = loop {
        if strace.try_wait().unwrap().is_some() {
            break None;
        }
        // There is one as soon as it is begun; `strace` first tries itself out on children
        // of its own.
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        let is_ours = |child: &&str| {
            let name = fs::read_to_string(format!("/proc/{child}/comm"));
            name.is_ok_and(|name| name == "pitser\n")
        };
        if let Some(child) = children.split_whitespace().find(is_ours) {
            break Some(child.to_owned());
        }
    };
    if let Some(process) = process {
        // It may have ended meanwhile.
        let mut kill = Command::new("kill");
        let _ = kill.args([signal, &process]).stderr(Stdio::null()).status();
    }
    strace.wait().unwrap().success()
}

type Id = usize;

/// What a disk writes whole, in bytes.
const SECTOR: usize = 512;

/// A file or a folder: what is durable, what came after it in its order, and what a
/// process sees.
enum Node {
    File {
        durable: Vec<u8>,
        since: Vec<Change>,
        live: Vec<u8>,
    },
    Folder {
        durable: BTreeMap<String, Id>,
        since: Vec<Naming>,
        live: BTreeMap<String, Id>,
    },
}

enum Change {
    Bytes { at: usize, bytes: Vec<u8> },
    Length(usize),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Length(length) => to.resize(*length, 0),
            Self::Bytes { at, bytes } => {
                let end = at + bytes.len();
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[*at..end].copy_from_slice(bytes);
            }
        }
    }
}

enum Naming {
    Named(String, Id),
    Renamed { from: String, to: String },
    Removed(String),
}

impl Naming {
    fn apply(&self, to: &mut BTreeMap<String, Id>) {
        match self {
            Self::Named(name, id) => drop(to.insert(name.clone(), *id)),
            Self::Removed(name) => drop(to.remove(name)),
            Self::Renamed { from, to: new } => {
                if let Some(id) = to.remove(from) {
                    to.insert(new.clone(), id);
                }
            }
        }
    }
}

impl Node {
    fn file(bytes: Vec<u8>) -> Self {
        Self::File {
            durable: bytes.clone(),
            since: Vec::new(),
            live: bytes,
        }
    }

    fn folder() -> Self {
        Self::Folder {
            durable: BTreeMap::new(),
            since: Vec::new(),
            live: BTreeMap::new(),
        }
    }

    /// How much came after what is durable.
    fn since(&self) -> usize {
        match self {
            Self::File { since, .. } => since.len(),
            Self::Folder { since, .. } => since.len(),
        }
    }

    /// Making the first `count` of what came durable has failed: a file's bytes among
    /// them will not be, unless they are written again. Names and lengths are the file
    /// system's own, and go on waiting.
    fn forsake(&mut self, count: usize) {
        if let Self::File { since, .. } = self {
            let count = count.min(since.len());
            let is_bytes = |change: &mut Change| matches!(change, Change::Bytes { .. });
            since.extract_if(..count, is_bytes).for_each(drop);
        }
    }

    /// The first `count` of what came are durable from now on.
    fn sync(&mut self, count: usize) {
        match self {
            Self::File { durable, since, .. } => {
                // Some of them may have been forsaken meanwhile.
                let count = count.min(since.len());
                since.drain(..count).for_each(|it| it.apply(durable));
            }
            Self::Folder { durable, since, .. } => {
                since.drain(..count).for_each(|it| it.apply(durable));
            }
        }
    }
}

/// What a number of a process stands for. Its place is unknown once it was read from.
struct Open {
    id: Id,
    place: Option<usize>,
    appends: bool,
}

/// A call that was begun.
struct Begun {
    text: String,
    /// For a call that makes durable: what, and how much of it.
    covers: Option<(Id, usize)>,
}

/// The model of a folder.
pub(crate) struct Disk {
    root: PathBuf,
    /// What relative paths begin at.
    working: PathBuf,
    nodes: Vec<Node>,
    open: HashMap<i64, usize>,
    opened: Vec<Open>,
    /// It was killed in a call that may have been done.
    is_in_doubt: bool,
}

/// What a power cut took.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Files whose newest bytes are not all there.
    pub(crate) files: usize,
    /// Folders whose newest names are not all there.
    pub(crate) folders: usize,
}

const ROOT: Id = 0;

impl Disk {
    /// The folder as it is: all of it durable, nobody at work in it.
    pub(crate) fn of(root: &Path, working: &Path) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            working: working.to_owned(),
            nodes: Vec::new(),
            open: HashMap::new(),
            opened: Vec::new(),
            is_in_doubt: false,
        };
        disk.load(root);
        disk
    }

    fn load(&mut self, path: &Path) -> Id {
        let id = self.nodes.len();
        if !path.is_dir() {
            self.nodes.push(Node::file(fs::read(path).unwrap()));
            return id;
        }
        self.nodes.push(Node::folder());
        for name in names(path) {
            let child = self.load(&path.join(&name));
            self.name(id, Naming::Named(name, child));
        }
        let all = self.nodes[id].since();
        self.nodes[id].sync(all);
        id
    }

    /// Does again what a process did, by what `strace` wrote down.
    pub(crate) fn replay(&mut self, log: &Path) {
        let log = fs::read_to_string(log).unwrap();
        let mut begun: HashMap<&str, Begun> = HashMap::new();
        for line in log.lines() {
            let (process, text) = line.split_once(' ').unwrap();
            let text = text.trim_start();
            if text.starts_with("+++") || text.starts_with("---") {
                continue;
            }
            // The second: the process was killed in it.
            let unfinished = text.strip_suffix(" <unfinished ...>");
            let detached = text.rsplit_once(" <detached ...>").map(|(text, _)| text);
            // Of a thread that it lets go, `strace` may say what another one is in.
            if detached.is_some_and(|text| begun.values().any(|other| other.text == text)) {
                continue;
            }
            let unfinished = unfinished.or(detached);
            // The number is free when the call begins: another thread may have it before
            // this one is told.
            if text.starts_with("close(") {
                self.closes(text);
            }
            if let Some(text) = unfinished {
                let covers = self.covers(text);
                let text = text.to_owned();
                begun.insert(process, Begun { text, covers });
            } else if let Some(rest) = text.strip_prefix("<... ") {
                let (_, rest) = rest.split_once(" resumed>").unwrap();
                let before = begun.remove(process).unwrap();
                self.call(&(before.text + rest), before.covers);
            } else {
                let covers = self.covers(text);
                self.call(text, covers);
            }
        }
        // Whether a call was done when its thread was killed, nobody knows. It is not
        // durable, so it is what may be lost; of writes, a part may be there.
        self.is_in_doubt |= !begun.is_empty();
        for (_, call) in begun {
            self.call(&format!("{}) = ?", call.text), None);
        }
        // The next process opens what it needs.
        self.open.clear();
    }

    /// Whether a call was under way when the process was killed: what it did is not known
    /// well enough to follow another process.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.is_in_doubt
    }

    /// What an `fsync` that begins now makes durable.
    fn covers(&self, text: &str) -> Option<(Id, usize)> {
        let (name, rest) = text.split_once('(')?;
        let ours = matches!(name, "fsync" | "fdatasync");
        let number = rest.split([',', ')', ' ']).next()?;
        let open = self.open.get(&number.parse().ok()?).filter(|_| ours)?;
        let id = self.opened[*open].id;
        Some((id, self.nodes[id].since()))
    }

    fn closes(&mut self, text: &str) {
        let (_, rest) = text.split_once('(').unwrap();
        let number = rest.split([')', ' ']).next().unwrap();
        self.open.remove(&number.parse().unwrap());
    }

    /// A call that came to its end.
    fn call(&mut self, text: &str, covers: Option<(Id, usize)>) {
        let (head, result) = text.rsplit_once(" = ").unwrap();
        let result = result.split(' ').next().unwrap();
        let (name, arguments) = head.trim_end().split_once('(').unwrap();
        let arguments = arguments.strip_suffix(')').unwrap();
        let arguments: Vec<&str> = arguments.split(", ").collect();
        let number = |at: usize| arguments[at].parse::<i64>().unwrap();
        let result = match result.strip_prefix("0x") {
            Some(flags) => i64::from_str_radix(flags, 16),
            None => result.parse(),
        };
        let result = match (result, name) {
            (Ok(result), _) => result,
            (Err(_), "write" | "pwrite64") => {
                self.is_in_doubt = true;
                number(2)
            }
            // It may have been done too.
            (Err(_), "ftruncate") => {
                self.is_in_doubt = true;
                0
            }
            (Err(_), _) => {
                self.is_in_doubt = true;
                return;
            }
        };
        if result < 0 {
            if let Some((id, count)) = covers {
                self.nodes[id].forsake(count);
            }
            return;
        }
        match name {
            "fsync" | "fdatasync" => {
                if let Some((id, count)) = covers {
                    self.nodes[id].sync(count);
                }
            }
            "openat" => self.opens(&arguments, result),
            "open" => self.opens(&[&["AT_FDCWD"], &arguments[..]].concat(), result),
            "close" => {}
            "fcntl" if arguments[1].starts_with("F_DUPFD") => {
                if let Some(open) = self.open.get(&number(0)).copied() {
                    self.open.insert(result, open);
                }
            }
            "fcntl" => {}
            "lseek" => {
                if let Some(open) = self.open.get(&number(0)) {
                    self.opened[*open].place = usize::try_from(result).ok();
                }
            }
            "write" => self.writes(number(0), None, &bytes(arguments[1]), result),
            "pwrite64" => {
                let at = usize::try_from(number(3)).unwrap();
                self.writes(number(0), Some(at), &bytes(arguments[1]), result);
            }
            "ftruncate" => {
                if let Some(open) = self.open.get(&number(0)) {
                    let length = usize::try_from(number(1)).unwrap();
                    self.change(self.opened[*open].id, Change::Length(length));
                }
            }
            "mkdir" => self.makes_folder("AT_FDCWD", arguments[0]),
            "mkdirat" => self.makes_folder(arguments[0], arguments[1]),
            "unlink" | "rmdir" => self.removes("AT_FDCWD", arguments[0]),
            "unlinkat" => self.removes(arguments[0], arguments[1]),
            "rename" => self.renames(("AT_FDCWD", arguments[0]), ("AT_FDCWD", arguments[1])),
            "renameat" | "renameat2" => {
                self.renames((arguments[0], arguments[1]), (arguments[2], arguments[3]));
            }
            "fork" | "vfork" => panic!("a process of two: {text}"),
            // Those that are about our files are not made by what we watch.
            _ => assert!(
                !self.open.contains_key(&number(0)) && !text.contains(&hex(&self.root)),
                "not understood: {text}"
            ),
        }
    }

    fn opens(&mut self, arguments: &[&str], number: i64) {
        let Some((folder, name)) = self.place(arguments[0], arguments[1]) else {
            return;
        };
        let has = |flag: &str| arguments[2].split('|').any(|f| f == flag);
        let id = if name.is_empty() {
            folder
        } else {
            let Node::Folder { live, .. } = &self.nodes[folder] else {
                panic!("no folder");
            };
            match live.get(&name) {
                Some(id) => *id,
                None => {
                    assert!(has("O_CREAT"), "{name} is there and was never made");
                    let id = self.nodes.len();
                    self.nodes.push(Node::file(Vec::new()));
                    self.name(folder, Naming::Named(name, id));
                    id
                }
            }
        };
        if has("O_TRUNC") {
            self.change(id, Change::Length(0));
        }
        self.open.insert(number, self.opened.len());
        self.opened.push(Open {
            id,
            place: has("O_WRONLY").then_some(0),
            appends: has("O_APPEND"),
        });
    }

    fn writes(&mut self, number: i64, at: Option<usize>, bytes: &[u8], count: i64) {
        let Some(open) = self.open.get(&number).copied() else {
            return;
        };
        let open = &mut self.opened[open];
        let (id, bytes) = (open.id, bytes[..usize::try_from(count).unwrap()].to_vec());
        let Node::File { live, .. } = &self.nodes[id] else {
            panic!("no file");
        };
        let at = match at {
            Some(at) => at,
            None if open.appends => live.len(),
            None => {
                let at = open.place.expect("reads of this file are not followed");
                open.place = Some(at + bytes.len());
                at
            }
        };
        self.change(id, Change::Bytes { at, bytes });
    }

    fn makes_folder(&mut self, from: &str, path: &str) {
        if let Some((folder, name)) = self.place(from, path) {
            let id = self.nodes.len();
            self.nodes.push(Node::folder());
            self.name(folder, Naming::Named(name, id));
        }
    }

    fn removes(&mut self, from: &str, path: &str) {
        if let Some((folder, name)) = self.place(from, path) {
            self.name(folder, Naming::Removed(name));
        }
    }

    fn renames(&mut self, from: (&str, &str), to: (&str, &str)) {
        match (self.place(from.0, from.1), self.place(to.0, to.1)) {
            (None, None) => {}
            (Some((folder, from)), Some((to_folder, to))) if folder == to_folder => {
                self.name(folder, Naming::Renamed { from, to });
            }
            _ => panic!("from one folder to another: {from:?} {to:?}"),
        }
    }

    fn change(&mut self, id: Id, change: Change) {
        let Node::File { since, live, .. } = &mut self.nodes[id] else {
            panic!("no file");
        };
        change.apply(live);
        since.push(change);
    }

    fn name(&mut self, folder: Id, naming: Naming) {
        let Node::Folder { since, live, .. } = &mut self.nodes[folder] else {
            panic!("no folder");
        };
        naming.apply(live);
        since.push(naming);
    }

    /// The folder that a path ends in, and the name there; no name for the root, and
    /// nothing for what is not below it.
    fn place(&self, from: &str, path: &str) -> Option<(Id, String)> {
        let path = String::from_utf8(bytes(path)).unwrap();
        let path = Path::new(&path);
        let (mut id, below) = match from {
            "AT_FDCWD" => {
                let path = self.working.join(path);
                (ROOT, path.strip_prefix(&self.root).ok()?.to_owned())
            }
            _ if path.is_absolute() => (ROOT, path.strip_prefix(&self.root).ok()?.to_owned()),
            number => {
                let open = self.open.get(&number.parse().ok()?)?;
                (self.opened[*open].id, path.to_owned())
            }
        };
        let names = below.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_str().unwrap().to_owned()),
            _ => None,
        });
        let mut names: Vec<String> = names.collect();
        let last = names.pop().unwrap_or_default();
        for name in names {
            let Node::Folder { live, .. } = &self.nodes[id] else {
                panic!("{name} is in no folder");
            };
            id = live[&name];
        }
        Some((id, last))
    }

    /// Asserts that the model has what the folder has; of calls that were under way, the
    /// folder says what they did.
    pub(crate) fn check(&mut self) {
        let root = self.root.clone();
        self.compare(ROOT, &root);
    }

    fn compare(&mut self, id: Id, path: &Path) {
        let is_in_doubt = self.is_in_doubt;
        match &mut self.nodes[id] {
            // SQLite's shared memory is mapped, and made anew by who opens it first.
            Node::File { .. } if path.to_string_lossy().ends_with("-shm") => {}
            Node::File {
                durable,
                since,
                live,
            } => {
                let there = fs::read(path).unwrap();
                if is_in_doubt && there != *live {
                    learn(durable, since, live, &there);
                }
                assert!(there == *live, "{}", path.display());
            }
            Node::Folder { live, .. } => {
                let there = names(path);
                let modelled: Vec<&String> = live.keys().collect();
                let is_same = there.iter().eq(modelled.iter().copied());
                let one_call = there.len().abs_diff(modelled.len()) <= 1;
                assert!(
                    is_same || self.is_in_doubt && one_call,
                    "{}: {there:?}, not {modelled:?}",
                    path.display()
                );
                if is_same {
                    for (name, child) in live.clone() {
                        self.compare(child, &path.join(name));
                    }
                }
            }
        }
    }

    /// Puts the folder as a disk may have it after the power was cut now.
    pub(crate) fn cut_power(&self, choices: &mut Choices) -> Lost {
        let mut lost = Lost::default();
        for entry in fs::read_dir(&self.root).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => fs::remove_dir_all(path).unwrap(),
                false => fs::remove_file(path).unwrap(),
            }
        }
        self.put(ROOT, &self.root, choices, &mut lost);
        lost
    }

    fn put(&self, id: Id, path: &Path, choices: &mut Choices, lost: &mut Lost) {
        match &self.nodes[id] {
            Node::File {
                durable,
                since,
                live,
            } => {
                let bytes = left_of(durable, since, live, choices);
                lost.files += usize::from(bytes != *live);
                fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .and_then(|mut file| std::io::Write::write_all(&mut file, &bytes))
                    .unwrap();
            }
            Node::Folder {
                durable,
                since,
                live,
            } => {
                if id != ROOT {
                    fs::create_dir(path).unwrap();
                    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
                }
                let mut names = durable.clone();
                let kept = match choices.below(3) {
                    0 => 0,
                    1 => since.len(),
                    _ => below(choices, since.len() + 1),
                };
                since[..kept].iter().for_each(|it| it.apply(&mut names));
                lost.folders += usize::from(names != *live);
                for (name, child) in &names {
                    self.put(*child, &path.join(name), choices, lost);
                }
            }
        }
    }
}

/// Makes the model of a file that of `there`: the newest call was not done, or in part,
/// or one more was done than was written down.
fn learn(durable: &[u8], since: &mut Vec<Change>, live: &mut Vec<u8>, there: &[u8]) {
    let replayed = |since: &[Change]| {
        let mut bytes = durable.to_vec();
        since.iter().for_each(|it| it.apply(&mut bytes));
        bytes
    };
    if there.starts_with(live) {
        let (at, bytes) = (live.len(), there[live.len()..].to_vec());
        since.push(Change::Bytes { at, bytes });
    } else if let Some(newest) = since.pop()
        && replayed(since) != there
        && let Change::Bytes { at, mut bytes } = newest
    {
        bytes.truncate(there.len().saturating_sub(at));
        since.push(Change::Bytes { at, bytes });
    }
    *live = replayed(since);
}

/// A file's bytes after a power cut.
fn left_of(durable: &[u8], since: &[Change], live: &[u8], choices: &mut Choices) -> Vec<u8> {
    let mut bytes = durable.to_vec();
    match choices.below(4) {
        0 => {}
        // Up to some call, of which some sectors are there.
        1 => {
            let whole = below(choices, since.len() + 1);
            since[..whole].iter().for_each(|it| it.apply(&mut bytes));
            if let Some(Change::Bytes { at, bytes: next }) = since.get(whole) {
                // A sector is written whole, or not at all.
                let end = (at + below(choices, next.len() + 1)) / SECTOR * SECTOR;
                let bytes_there = next[..end.saturating_sub(*at)].to_vec();
                let there = Change::Bytes {
                    at: *at,
                    bytes: bytes_there,
                };
                there.apply(&mut bytes);
            }
        }
        // The new length or the old one, and each block as it was or as it is: zeroes,
        // where it was none.
        2 => {
            let size = [SECTOR, 4096][below(choices, 2)];
            bytes.resize([durable.len(), live.len()][below(choices, 2)], 0);
            let end = bytes.len().min(live.len());
            for at in (0..end).step_by(size) {
                let block = at..(at + size).min(end);
                if choices.below(2) == 0 {
                    bytes[block.clone()].copy_from_slice(&live[block]);
                }
            }
        }
        _ => bytes = live.to_vec(),
    }
    bytes
}

/// Of files and folders, sorted. Sockets are made anew by who listens.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| !entry.file_type().unwrap().is_socket());
    let mut names: Vec<String> = files
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

fn below(choices: &mut Choices, limit: usize) -> usize {
    usize::try_from(choices.below(limit as u64)).unwrap()
}

/// What stands between quotes, each byte as `\xNN`.
fn bytes(quoted: &str) -> Vec<u8> {
    let text = quoted.strip_prefix('"').and_then(|q| q.strip_suffix('"'));
    let text = text.unwrap_or_else(|| panic!("not all of it is there: {quoted:.80}"));
    let digits: String = text.split("\\x").collect();
    data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap()
}

/// A path as `strace` writes it.
fn hex(path: &Path) -> String {
    let bytes = path.to_str().unwrap().bytes();
    bytes.map(|byte| format!("\\x{byte:02x}")).collect()
}
