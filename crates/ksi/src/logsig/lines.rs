//! Where log lines end. LF, CR LF and a lone CR all end a line and are not part
//! of it; an empty line is a line; bytes after the last line end are a line.

/// The lines of a log that is in memory. No allocation.
///
/// ```
/// use pitser_ksi::logsig::Lines;
/// let lines: Vec<&[u8]> = Lines::new(b"one\r\n\ntwo\rthree").collect();
/// assert_eq!(lines, [&b"one"[..], b"", b"two", b"three"]);
/// ```
#[derive(Clone, Debug)]
pub struct Lines<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    /// The lines of `log`.
    #[must_use]
    pub fn new(log: &'a [u8]) -> Self {
        Self { rest: log, at: 0 }
    }

    /// Position of the next line in the log, in bytes.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// Steps over the next `count` lines and returns their bytes, line ends
    /// included, or `None` if there are fewer: how a log is cut into the
    /// stretches of its blocks, to verify them in parallel.
    pub fn take_lines(&mut self, count: u64) -> Option<&'a [u8]> {
        let (log, from) = (self.rest, self.at);
        for _ in 0..count {
            self.next()?;
        }
        Some(&log[..self.at - from])
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (line, consumed) = next_line(self.rest, true)?;
        self.rest = &self.rest[consumed..];
        self.at += consumed;
        Some(line)
    }
}

impl core::iter::FusedIterator for Lines<'_> {}

/// The first line of `buffer` and the number of bytes up to the next one.
///
/// With `at_end` the buffer holds everything that will come. Otherwise `None`
/// asks for more bytes: the line is not over, or ends with a CR that a LF may
/// follow.
#[must_use]
pub fn next_line(buffer: &[u8], at_end: bool) -> Option<(&[u8], usize)> {
    let Some(end) = line_end(buffer) else {
        return (at_end && !buffer.is_empty()).then_some((buffer, buffer.len()));
    };
    let line = &buffer[..end];
    match (buffer[end], buffer.get(end + 1)) {
        (b'\r', Some(b'\n')) => Some((line, end + 2)),
        (b'\r', None) if !at_end => None,
        _ => Some((line, end + 1)),
    }
}

/// Position of the first CR or LF. Looks at whole groups first, which the
/// compiler turns into vector instructions.
fn line_end(bytes: &[u8]) -> Option<usize> {
    const GROUP: usize = 32;
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let before = bytes
        .chunks_exact(GROUP)
        .take_while(|group| !group.iter().fold(false, |any, byte| any | is_end(byte)))
        .count()
        * GROUP;
    bytes[before..]
        .iter()
        .position(is_end)
        .map(|end| before + end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(log: &[u8], expected: &[&[u8]]) {
        assert_eq!(Lines::new(log).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn every_line_end_counts_once() {
        check(b"", &[]);
        check(b"a", &[b"a"]);
        check(b"a\n", &[b"a"]);
        check(b"a\r\nb\rc\n", &[b"a", b"b", b"c"]);
        check(b"\n\r\n\r", &[b"", b"", b""]);
        check(b"\n\r", &[b"", b""]);
    }

    #[test]
    fn long_lines_are_found_at_every_length() {
        for length in 0..100 {
            let mut log = vec![b'x'; length];
            log.extend(b"\r\ny");
            check(&log, &[&log[..length], b"y"]);
        }
    }

    #[test]
    fn more_bytes_are_asked_for() {
        assert_eq!(next_line(b"", false), None);
        assert_eq!(next_line(b"a", false), None);
        assert_eq!(next_line(b"a\r", false), None);
        assert_eq!(next_line(b"a\r", true), Some((&b"a"[..], 2)));
        assert_eq!(next_line(b"a\rb", false), Some((&b"a"[..], 2)));
        assert_eq!(next_line(b"a\n", false), Some((&b"a"[..], 2)));
    }

    #[test]
    fn stretches_keep_their_line_ends() {
        let mut lines = Lines::new(b"a\nb\r\nc");
        assert_eq!(lines.take_lines(2), Some(&b"a\nb\r\n"[..]));
        assert_eq!(lines.position(), 5);
        assert_eq!(lines.clone().take_lines(2), None);
        assert_eq!(lines.take_lines(1), Some(&b"c"[..]));
    }
}
