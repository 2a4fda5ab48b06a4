//! A guardian that ends without warning between the lines of a transaction and what is
//! wrong with it: whatever part of its lines is durable, nothing is lost or told twice.

use super::*;
use pitser_evidence::Code;
use pitser_evidence::line::{Line, Op};

/// Rows added by a program, in a bracket.
fn added(by: &str, from: usize, rows: usize) -> String {
    format!(
        "BEGIN;
         INSERT INTO pitser_begin (actor, app, role) VALUES ('EE38001085718', '{by}', '{by}');
         WITH RECURSIVE n(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM n LIMIT {rows})
         INSERT INTO result SELECT n, 'obs-1', 'normal' FROM n;
         INSERT INTO pitser_end DEFAULT VALUES;
         COMMIT;"
    )
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().unwrap().is_dir() {
            true => copy(&from, &to),
            false => drop(std::fs::copy(&from, &to).unwrap()),
        }
    }
}

impl Site {
    /// The same as it is now, elsewhere: database and trail as a process that is killed
    /// leaves them.
    fn as_killed(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(self.dir.path(), dir.path());
        let mut site = Self {
            source: self.source.clone(),
            tuning: self.tuning.clone(),
            dir,
        };
        site.source.url = site.dir.path().join("hospital.db").display().to_string();
        site.tuning.data = site.dir.path().join("guard");
        site
    }

    fn segment(&self) -> PathBuf {
        let segments = self.tuning.layout(&self.source).segments();
        segments.join("000000.jsonl")
    }

    fn fingerprint(&self) -> PathBuf {
        let layout = self.tuning.layout(&self.source);
        layout.dir().join("fingerprint.json")
    }

    fn lines(&self) -> Vec<Line> {
        let layout = self.tuning.layout(&self.source);
        let mut lines = Vec::new();
        pitser_trail::read(&layout, None, |line, _| lines.push(line.clone())).unwrap();
        lines
    }
}

/// What the lines tell, without their numbers: the positions of changes, and the findings
/// with that of the change that each is about.
fn told(lines: &[Line]) -> Vec<(String, Option<(Code, String)>)> {
    let about = |line: &Line| {
        let finding = line.finding.as_ref()?;
        let about = usize::try_from(finding.about?).unwrap();
        assert!(finding.about < Some(line.seq));
        Some((
            finding.code,
            format!("{} {}", lines[about].pos, finding.text),
        ))
    };
    let lines = lines.iter();
    let is_change = |op| matches!(op, Op::Create | Op::Update | Op::Delete);
    let is_told = |op| is_change(op) || matches!(op, Op::Gap | Op::Ddl | Op::Finding);
    let lines = lines.filter(|line| is_told(line.op));
    lines.map(|line| (line.pos.clone(), about(line))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_transaction_is_told_once_wherever_its_lines_end() {
    let mut site = Site::new();
    site.source.application.roles = vec!["ward".into()];
    install(&site).unwrap();
    let guardian = site.start_still();
    guardian.scan().await.unwrap();
    guardian.stop().await;
    let fingerprint = std::fs::read(site.fingerprint()).unwrap();
    let first = std::fs::read(site.segment()).unwrap().len();
    let index = "CREATE INDEX somebodys ON result(note)";
    site.database().execute_batch(index).unwrap();
    let guardian = site.start_still();
    guardian.scan().await.unwrap();
    // Nobody's, a stranger's, the application's, nobody's; a hole; one that takes several
    // looks.
    for what in [
        "INSERT INTO result VALUES (10, 'obs-1', 'x')",
        &added("stranger", 20, 3),
        &added("ward", 30, 2),
        "DELETE FROM result WHERE id < 12",
        // Another patient's from now on, which is said in a line of its own before.
        "UPDATE result SET observation = 'obs-2' WHERE id = 30",
        "BEGIN;
         INSERT INTO result VALUES (50, 'obs-1', 'x');
         DELETE FROM result WHERE id = 50;
         DELETE FROM pitser_outbox WHERE id + 1 >= (SELECT max(id) FROM pitser_outbox);
         COMMIT",
        &added("stranger", 100, 300),
    ] {
        site.database().execute_batch(what).unwrap();
    }
    guardian.scan().await.unwrap();
    let killed = site.as_killed();
    guardian.stop().await;

    let written = std::fs::read(killed.segment()).unwrap();
    let expected = told(&killed.lines());
    let findings = expected.iter().filter_map(|(_, finding)| finding.as_ref());
    let codes: Vec<&str> = findings.map(|(code, _)| code.as_str()).collect();
    let all = [
        "CAP-05", "ACT-01", "ACT-02", "ACT-01", "ACT-01", "ACT-01", "ACT-01", "CAP-01", "ACT-02",
    ];
    assert_eq!(codes, all, "{expected:#?}");
    let (_, last) = expected.last().unwrap();
    let (_, text) = last.as_ref().unwrap();
    assert!(text.contains("and 299 more rows"), "{text}");

    let ends = (first..=written.len()).filter(|end| written[end - 1] == b'\n');
    let ends: Vec<usize> = ends.collect();
    let lines = killed.lines();
    let sealed = lines.iter().rposition(|line| line.op == Op::Ddl).unwrap() + 1;
    let sealed = sealed - (lines.len() - ends.len());
    // Each line at first, then some within the long one, and its last.
    let chosen = |nth: &usize| *nth < 20 || nth.is_multiple_of(61) || nth + 4 > ends.len();
    for nth in (0..ends.len()).filter(chosen) {
        let site = killed.as_killed();
        std::fs::write(site.segment(), &written[..ends[nth]]).unwrap();
        if nth < sealed {
            // It is replaced when the lines about the next one are durable.
            std::fs::write(site.fingerprint(), &fingerprint).unwrap();
        }
        let guardian = site.start_still();
        guardian.scan().await.unwrap();
        // Killed once more, it is told again of what came last.
        let again = site.as_killed();
        guardian.stop().await;
        assert_eq!(told(&again.lines()), expected, "after line {nth}");
        let guardian = again.start_still();
        guardian.scan().await.unwrap();
        guardian.stop().await;
        assert_eq!(told(&again.lines()), expected, "after line {nth}, again");
    }
}
