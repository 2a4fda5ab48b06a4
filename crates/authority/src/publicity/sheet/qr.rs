//! The publication code as a QR code. Its letters are what QR calls alphanumeric, so
//! a phone shows exactly the printed text.

use qrcodegen::{QrCode, QrCodeEcc};

/// Dark and light squares.
pub(super) struct Squares(QrCode);

/// Dark squares side by side, counted from the top left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) length: i32,
}

impl Squares {
    /// None if `text` is longer than a QR code holds, about 1 500 letters.
    pub(super) fn of(text: &str) -> Option<Self> {
        // A quarter of it may be covered or worn off.
        QrCode::encode_text(text, QrCodeEcc::Quartile)
            .ok()
            .map(Self)
    }

    /// Squares on a side, without the light margin of [`MARGIN`] that readers need.
    pub(super) fn size(&self) -> i32 {
        self.0.size()
    }

    /// All dark squares.
    pub(super) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for y in 0..self.size() {
            for x in (0..self.size()).filter(|x| self.0.get_module(*x, y)) {
                match runs.last_mut() {
                    Some(run) if run.y == y && run.x + run.length == x => run.length += 1,
                    _ => runs.push(Run { x, y, length: 1 }),
                }
            }
        }
        runs
    }
}

/// Light squares around it.
pub(super) const MARGIN: i32 = 4;
