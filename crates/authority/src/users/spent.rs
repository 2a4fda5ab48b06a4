//! What users have spent of their quotas, so that a restart forgets nothing.
//!
//! ```text
//! pitser spent 1
//! 20526 1200 24314 31000 hospital      day, signatures in it, month, in it, login
//! ```
//! Days count from 1970, months from the year 0. The file is replaced as a whole
//! once a minute and at the end: a crash forgets a minute at most. What cannot be
//! read is told and begins at nothing; it is never a reason not to sign.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use pitser_disk::{Access, replace};

use super::Spent;

const VERSION: &str = "pitser spent 1";

pub(crate) fn read(path: &Path) -> Vec<(String, Spent)> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            tracing::error!(file = %path.display(), error = %e, "spent quotas are forgotten");
            return Vec::new();
        }
    };
    parse(&text).unwrap_or_else(|| {
        tracing::error!(file = %path.display(), "spent quotas are forgotten: the file is damaged");
        Vec::new()
    })
}

pub(crate) fn write(path: &Path, spent: &[(Arc<str>, Spent)]) {
    if let Err(e) = replace(path, encode(spent).as_bytes(), Access::Owner) {
        tracing::error!(file = %path.display(), error = %e, "spent quotas were not stored");
    }
}

fn parse(text: &str) -> Option<Vec<(String, Spent)>> {
    let mut lines = text.lines();
    if lines.next()? != VERSION {
        return None;
    }
    lines.map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<(String, Spent)> {
    let mut fields = line.splitn(5, ' ');
    let mut number = || fields.next()?.parse().ok();
    let spent = Spent::of_quotas(number()?, number()?, number()?, number()?);
    Some((fields.next()?.to_owned(), spent))
}

fn encode(spent: &[(Arc<str>, Spent)]) -> String {
    let mut text = format!("{VERSION}\n");
    // A login with a line break could pass for somebody else's line.
    for (login, s) in spent.iter().filter(|(login, _)| !login.contains('\n')) {
        text += &format!(
            "{} {} {} {} {login}\n",
            s.day, s.in_day, s.month, s.in_month
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote_and_nothing_else() {
        let spent = vec![
            (Arc::from("a b"), Spent::of_quotas(1, 2, 3, 4)),
            (Arc::from("x\ny"), Spent::default()),
        ];
        let text = encode(&spent);
        let read = parse(&text).unwrap();
        assert_eq!(read, [("a b".to_owned(), Spent::of_quotas(1, 2, 3, 4))]);
        for wrong in [
            "",
            "pitser spent 2\n",
            "pitser spent 1\n1 2 3\n",
            "pitser spent 1\n1 2 x 4 a\n",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
