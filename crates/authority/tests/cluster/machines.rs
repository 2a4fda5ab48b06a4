//! Three machines, each with a member of etcd and a node of the authority, all
//! real processes. As root every machine has a network namespace of its own, whose
//! cable can be pulled; otherwise all are on loopback.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pitser_authority::calendar::CalendarError;
use pitser_authority::cluster::{Cluster, ClusterConfig, ClusterError, EtcdError};
use pitser_authority::{Authority, Second, Subject};
#[cfg(feature = "s3")]
use pitser_client::store::S3Credentials;
use pitser_client::store::S3Options;
use pitser_client::{Client, Endpoint, Options};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_blocking;

use crate::history::{Event, Kind};
use crate::port::free_address;
use crate::proxy::{Line, Proxy};

/// The genesis of every authority here: 2026-03-14T09:26:53Z.
pub const GENESIS: Second = Second(1_773_480_413);
/// Seconds that pass in a second, so that a run has many rounds.
pub const SPEED: u64 = 4;
pub const MACHINES: usize = 3;

/// Nanoseconds since 1970 by this machine's clock, the same for all processes.
#[allow(clippy::disallowed_methods, reason = "tests own a clock")]
pub fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_nanos() as u64
}

/// Whether there is an etcd to test with; says so if not.
pub fn has_etcd() -> bool {
    let found = Command::new("etcd").arg("--version").output().is_ok();
    if !found {
        println!("skipped: no etcd here (Debian: etcd-server)");
    }
    found
}

/// Where the machines are.
enum Network {
    /// Namespaces behind one bridge.
    Namespaces {
        name: String,
        subnet: [u8; 3],
    },
    Loopback {
        ports: Vec<u16>,
    },
}

impl Network {
    fn new() -> Self {
        static WORLDS: AtomicU16 = AtomicU16::new(0);
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let id = (std::process::id() as u16).wrapping_add(number.wrapping_mul(4099));
        let network = Self::Namespaces {
            name: format!("pc{id:x}"),
            subnet: [10, 64 + (id >> 8) as u8 % 128, id as u8],
        };
        if network.set_up() {
            return network;
        }
        network.tear_down();
        let port = |_| free_address().port();
        Self::Loopback {
            ports: (0..MACHINES * 4).map(port).collect(),
        }
    }

    fn set_up(&self) -> bool {
        let Self::Namespaces { name, subnet } = self else {
            return true;
        };
        let [a, b, c] = subnet;
        let mut good = ip(&format!("link add {name}b type bridge"))
            && ip(&format!("addr add {a}.{b}.{c}.1/24 dev {name}b"))
            && ip(&format!("link set {name}b up"));
        for i in 0..MACHINES {
            let (space, last) = (format!("{name}n{i}"), i + 2);
            good = good
                && ip(&format!("netns add {space}"))
                && ip(&format!(
                    "link add {name}v{i} type veth peer name eth0 netns {space}"
                ))
                && ip(&format!("link set {name}v{i} master {name}b"))
                && ip(&format!("link set {name}v{i} up"))
                && ip(&format!("-n {space} link set lo up"))
                && ip(&format!(
                    "-n {space} addr add {a}.{b}.{c}.{last}/24 dev eth0"
                ))
                && ip(&format!("-n {space} link set eth0 up"));
        }
        good
    }

    fn tear_down(&self) {
        if let Self::Namespaces { name, .. } = self {
            for i in 0..MACHINES {
                ip(&format!("netns del {name}n{i}"));
            }
            ip(&format!("link del {name}b"));
        }
    }

    /// Pulls a machine's cable, or plugs it in.
    fn cable(&self, machine: usize, is_in: bool) -> bool {
        match self {
            Self::Namespaces { name, .. } => {
                let state = if is_in { "up" } else { "down" };
                ip(&format!("link set {name}v{machine} {state}"))
            }
            Self::Loopback { .. } => false,
        }
    }

    fn address(&self, machine: usize, service: usize) -> SocketAddr {
        match self {
            Self::Namespaces {
                subnet: [a, b, c], ..
            } => {
                let ip = Ipv4Addr::new(*a, *b, *c, machine as u8 + 2);
                (ip, 2379 + service as u16).into()
            }
            Self::Loopback { ports } => (Ipv4Addr::LOCALHOST, ports[machine * 4 + service]).into(),
        }
    }

    /// Where the test itself listens, port 0.
    fn own(&self) -> SocketAddr {
        match self {
            Self::Namespaces {
                subnet: [a, b, c], ..
            } => (Ipv4Addr::new(*a, *b, *c, 1), 0).into(),
            Self::Loopback { .. } => (IpAddr::V4(Ipv4Addr::LOCALHOST), 0).into(),
        }
    }

    fn command(&self, machine: usize, program: &Path) -> Command {
        match self {
            Self::Namespaces { name, .. } => {
                // `ip` becomes the program: its process id is the program's.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &format!("{name}n{machine}")]);
                command.arg(program);
                command
            }
            Self::Loopback { .. } => Command::new(program),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.tear_down();
    }
}

fn ip(arguments: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(arguments.split(' ')).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A process that is killed with this.
pub struct Process(Child);

impl Process {
    fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success(), "kill {signal} {pid}");
    }

    pub fn pause(&self) {
        self.signal("-STOP");
    }

    pub fn resume(&self) {
        self.signal("-CONT");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running node; it stops in order when its standard input is closed.
pub struct Node {
    pub process: Process,
    stdin: Option<ChildStdin>,
}

pub struct World {
    pub dir: TempDir,
    network: Network,
    pub etcds: Vec<Option<Process>>,
    pub nodes: Vec<Option<Node>>,
    /// `lines[node][member]`
    pub lines: Vec<Vec<Proxy>>,
    /// Nanoseconds since 1970 when the genesis was.
    began_ns: u64,
    incarnations: usize,
    token: String,
    /// Seconds leave etcd when they are older than this.
    pub keep_s: u64,
    /// Where old seconds go; a folder, if there is none.
    #[cfg(feature = "s3")]
    pub s3: Option<crate::s3::S3Server>,
}

/// How a bucket at `endpoint`, if there is one, is reached. Machines with namespaces of
/// their own are not this one.
pub fn s3_options(endpoint: Option<String>) -> S3Options {
    S3Options {
        endpoint,
        #[cfg(feature = "s3")]
        credentials: Some(S3Credentials::new(
            crate::s3::KEY_ID,
            crate::s3::SECRET,
            None,
        )),
        #[cfg(feature = "s3")]
        allow_http: true,
        ..S3Options::default()
    }
}

const ETCD: usize = 0;
const PEER: usize = 1;
const TCP: usize = 2;
const HTTP: usize = 3;

impl World {
    /// Three running members of etcd, a founded cluster, no node yet.
    pub async fn new() -> Self {
        let world = Self::unfounded().await;
        world.found().await.unwrap();
        world
    }

    /// Three running members of etcd, and a folder for node 0.
    pub async fn unfounded() -> Self {
        let network = Network::new();
        let mut lines = Vec::new();
        for _ in 0..MACHINES {
            let mut line = Vec::new();
            for member in 0..MACHINES {
                line.push(Proxy::open(network.own(), network.address(member, ETCD)).await);
            }
            lines.push(line);
        }
        let mut world = Self {
            dir: TempDir::new().unwrap(),
            token: format!("pitser-{}", now_ns()),
            network,
            etcds: Vec::new(),
            nodes: (0..MACHINES).map(|_| None).collect(),
            lines,
            began_ns: now_ns(),
            incarnations: 0,
            keep_s: 3600,
            #[cfg(feature = "s3")]
            s3: None,
        };
        for machine in 0..MACHINES {
            world.etcds.push(None);
            world.start_etcd(machine);
        }
        fs::create_dir(world.tiles()).unwrap();
        let folder = world.folder(0);
        spawn_blocking(move || init(&folder)).await.unwrap();
        world
    }

    /// Makes node 0's folder the beginning, and copies it to the others.
    pub async fn found(&self) -> Result<(), ClusterError> {
        let (config, folder) = (self.direct(), self.folder(0));
        loop {
            match Cluster::found(&config, &folder, None).await {
                // Its members are electing their leader.
                Err(ClusterError::Etcd(EtcdError::NoAnswer { .. })) => {}
                // A process that another run starts has, until it becomes its program, the
                // lock of the attempt before.
                Err(ClusterError::Calendar(CalendarError::InUse { .. })) => {}
                Err(e) => return Err(e),
                Ok(()) => break,
            }
        }
        for machine in 1..MACHINES {
            copy(&self.folder(0), &self.folder(machine));
        }
        Ok(())
    }

    /// Lets so many seconds have passed since the genesis.
    pub fn age(&mut self, seconds: u64) {
        self.began_ns = now_ns() - seconds * 1_000_000_000 / SPEED;
    }

    /// etcd, past all lines.
    pub async fn etcd(&self) -> etcd_client::Client {
        let endpoints = self.direct().endpoints;
        etcd_client::Client::connect(endpoints, None).await.unwrap()
    }

    /// The node that leads, as etcd knows.
    pub async fn leader(&self) -> Option<usize> {
        let asked = tokio::time::timeout(Duration::from_secs(2), async {
            let found = self.etcd().await.get("/pitser/leader", None).await.ok()?;
            let leader = found.kvs().first()?.value_str().ok()?.to_owned();
            (0..MACHINES).find(|machine| name(*machine) == leader)
        });
        asked.await.ok().flatten()
    }

    /// Ends the term of whoever leads, if etcd can be reached.
    pub async fn depose(&self) {
        let asked = tokio::time::timeout(Duration::from_secs(1), async {
            self.etcd().await.delete("/pitser/leader", None).await
        });
        let _ = asked.await;
    }

    /// What a node tells monitors: the status line, and its reason.
    pub async fn health(&self, machine: usize) -> std::io::Result<String> {
        let (head, body) = self.get(machine, "/health").await?;
        Ok(head + &String::from_utf8_lossy(&body))
    }

    /// What a node answers over HTTP: head and body.
    pub async fn get(&self, machine: usize, path: &str) -> std::io::Result<(String, Vec<u8>)> {
        let mut stream = tokio::net::TcpStream::connect(self.http(machine)).await?;
        let request = format!("GET {path} HTTP/1.0\r\nhost: node\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let body = answer.split_off(end.map_or(answer.len(), |end| end + 4));
        Ok((String::from_utf8_lossy(&answer).into_owned(), body))
    }

    /// Where a node answers over HTTP.
    pub fn http(&self, machine: usize) -> SocketAddr {
        self.network.address(machine, HTTP)
    }

    /// Microseconds since 1970 by the clocks of nodes that are right.
    pub fn now_us(&self) -> u64 {
        GENESIS.0 * 1_000_000 + (now_ns() - self.began_ns) / 1000 * SPEED
    }

    /// Until a node's health says so.
    pub async fn until_health(&self, machine: usize, says: &str) {
        until(says, async || {
            let health = self.health(machine).await;
            health.is_ok_and(|health| health.contains(says))
        })
        .await;
    }

    /// The configuration of whoever is not behind a line.
    pub fn direct(&self) -> ClusterConfig {
        let endpoints = (0..MACHINES).map(|m| format!("http://{}", self.etcd_address(m)));
        let mut config = ClusterConfig::new("test", endpoints.collect(), self.store());
        config.s3 = s3_options(self.s3_endpoint());
        config
    }

    /// Lets old seconds go to a server that speaks S3; false if there is none here.
    #[cfg(feature = "s3")]
    pub fn use_s3(&mut self) -> bool {
        self.s3 = crate::s3::S3Server::start_at(&self.network.own().ip().to_string());
        self.s3.is_some()
    }

    fn s3_endpoint(&self) -> Option<String> {
        #[cfg(feature = "s3")]
        if let Some(server) = &self.s3 {
            return Some(format!("http://{}", server.address()));
        }
        None
    }

    pub fn etcd_address(&self, machine: usize) -> SocketAddr {
        self.network.address(machine, ETCD)
    }

    pub fn folder(&self, machine: usize) -> PathBuf {
        self.dir.path().join(format!("node-{machine}"))
    }

    /// A node's admin socket, outside its folder, which is copied.
    pub fn admin(&self, machine: usize) -> PathBuf {
        self.dir.path().join(format!("admin-{machine}.sock"))
    }

    /// The folder that has the tiles, in whatever kind of store.
    pub fn tiles(&self) -> PathBuf {
        #[cfg(feature = "s3")]
        if let Some(server) = &self.s3 {
            return server.file("tiles");
        }
        self.dir.path().join("tiles")
    }

    pub fn store(&self) -> String {
        if self.s3_endpoint().is_some() {
            return "s3://bucket/tiles".to_owned();
        }
        format!("file://{}", self.tiles().display())
    }

    pub fn start_etcd(&mut self, machine: usize) {
        let url = |m: usize, service| format!("http://{}", self.network.address(m, service));
        let all: Vec<String> = (0..MACHINES)
            .map(|m| format!("e{m}={}", url(m, PEER)))
            .collect();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("etcd-{machine}.log")))
            .unwrap();
        let data = self.dir.path().join(format!("etcd-{machine}"));
        let mut command = self.network.command(machine, Path::new("etcd"));
        command
            .arg("--name")
            .arg(format!("e{machine}"))
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &url(machine, ETCD)])
            .args(["--advertise-client-urls", &url(machine, ETCD)])
            .args(["--listen-peer-urls", &url(machine, PEER)])
            .args(["--initial-advertise-peer-urls", &url(machine, PEER)])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--initial-cluster-token", &self.token])
            // As docs/cluster.md advises.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .arg("--pre-vote")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.etcds[machine] = Some(Process(command.spawn().unwrap()));
    }

    pub fn kill_etcd(&mut self, machine: usize) {
        self.etcds[machine] = None;
    }

    /// Starts a node whose clock is ahead by so many milliseconds of its own time.
    pub async fn start_node(&mut self, machine: usize, ahead_ms: i64) {
        let program = std::env::current_exe().unwrap();
        let endpoints = self.lines[machine].iter();
        let endpoints: Vec<String> = endpoints
            .map(|line| format!("http://{}", line.address))
            .collect();
        self.incarnations += 1;
        let log = self
            .dir
            .path()
            .join(format!("log-{machine}-{:03}", self.incarnations));
        let history = self
            .dir
            .path()
            .join(format!("history-{machine}-{:03}", self.incarnations));
        let mut command = self.network.command(machine, &program);
        command
            .args(["--exact", "node::node_process", "--ignored", "--nocapture"])
            .env("NODE_NAME", name(machine))
            .env("NODE_FOLDER", self.folder(machine))
            .env("NODE_ADMIN", self.admin(machine))
            .env("NODE_ETCD", endpoints.join(","))
            .env("NODE_STORE", self.store())
            .env("NODE_TCP", self.network.address(machine, TCP).to_string())
            .env("NODE_HTTP", self.network.address(machine, HTTP).to_string())
            .env("NODE_BEGAN_NS", self.began_ns.to_string())
            .env("NODE_AHEAD_MS", ahead_ms.to_string())
            .env("NODE_KEEP_S", self.keep_s.to_string())
            .env("NODE_HISTORY", history)
            .envs(self.s3_endpoint().map(|endpoint| ("NODE_S3", endpoint)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let stdin = child.stdin.take();
        let process = Process(child);
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let found = lines.any(|line| line.is_ok_and(|line| line.contains("READY")));
            let _ = ready.send(found);
            // The process is not to find its output closed.
            lines.for_each(drop);
        });
        assert!(
            is_ready.await.unwrap(),
            "node {machine} did not start: {}",
            fs::read_to_string(log).unwrap()
        );
        self.nodes[machine] = Some(Node { process, stdin });
    }

    /// Ends a node as an operator does; returns when it is gone.
    pub async fn stop_node(&mut self, machine: usize) {
        let Some(mut node) = self.nodes[machine].take() else {
            return;
        };
        drop(node.stdin.take());
        spawn_blocking(move || node.process.0.wait().unwrap())
            .await
            .unwrap();
    }

    pub fn kill_node(&mut self, machine: usize) {
        self.nodes[machine] = None;
    }

    /// Cuts a machine off: node and etcd from everything else, if there are
    /// namespaces; otherwise the node from etcd.
    pub fn cut_off(&self, machine: usize) {
        if !self.network.cable(machine, false) {
            self.set_lines(machine, Line::Cut);
        }
    }

    pub fn put_back(&self, machine: usize) {
        self.network.cable(machine, true);
        self.set_lines(machine, Line::Good);
    }

    pub fn set_lines(&self, machine: usize, line: Line) {
        for proxy in &self.lines[machine] {
            proxy.set(line);
        }
    }

    /// A client of one node, or of all of them.
    pub fn client(&self, machines: impl IntoIterator<Item = usize>) -> Client {
        let options = Options {
            connect_timeout: Duration::from_secs(1),
            answer_timeout: Duration::from_secs(3),
            ..Options::default()
        };
        let endpoints = machines.into_iter().map(|machine| {
            let address = self.network.address(machine, TCP);
            Endpoint::parse(&format!("ksi+tcp://anon:anon@{address}")).unwrap()
        });
        Client::of(endpoints, &options).unwrap()
    }

    pub fn publications_uri(&self, machine: usize) -> String {
        format!("http://{}/publications.bin", self.http(machine))
    }

    /// What the nodes wrote down, of all their lives.
    pub fn history(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            let Some(rest) = file.strip_prefix("history-") else {
                continue;
            };
            let text = fs::read_to_string(&path).unwrap();
            // A killed node may have left half a line.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            for line in whole.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                events.push(Event {
                    time_ns: words[0].parse().unwrap(),
                    by: name(rest[..1].parse().unwrap()),
                    kind: Kind::parse(words[1]).unwrap(),
                    at: words[2].parse().unwrap(),
                    root: words[3].to_owned(),
                });
            }
        }
        events
    }

    /// The stopped nodes' calendars, whole; each is audited.
    pub fn calendars(&self) -> BTreeMap<String, BTreeMap<u64, String>> {
        use pitser_authority::calendar::Calendar;
        let mut all = BTreeMap::new();
        for machine in 0..MACHINES {
            let calendar = Calendar::open(&self.folder(machine).join("calendar")).unwrap();
            let reader = calendar.reader();
            assert_eq!(reader.audit(|_, _| ()).unwrap().fault, None);
            let head = reader.head().map_or(GENESIS.0 - 1, |head| head.0);
            let seconds = (GENESIS.0..=head)
                .map(|at| (at, reader.leaf(Second(at)).unwrap().to_string()))
                .collect();
            all.insert(name(machine), seconds);
        }
        all
    }

    /// Why nodes left or complained, for a failure's report.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let mut paths: Vec<PathBuf> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        for path in paths {
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            if file.starts_with("log-") {
                let log = fs::read_to_string(path).unwrap();
                let lines: Vec<&str> = log.lines().collect();
                let newest = &lines[lines.len().saturating_sub(40)..];
                text += &format!("== {file}\n{}\n", newest.join("\n"));
            }
        }
        text
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.logs());
        }
        // Before the network goes.
        self.nodes.clear();
        self.etcds.clear();
    }
}

pub fn init(folder: &Path) {
    let subject = Subject {
        email: "publications@pitser.example".to_owned(),
        ..Subject::default()
    };
    Authority::init(folder, GENESIS, &subject).unwrap();
}

pub fn name(machine: usize) -> String {
    format!("node-{machine}")
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Asks again and again until it is so; the bound is for broken tests only.
pub async fn until(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !ask().await {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
