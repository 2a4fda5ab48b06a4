//! Finding codes: what can be wrong, under names that are safe to alert on.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal: $meaning:literal,)*) => {
        /// A stable finding code (DESIGN §7).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Code {
            $(#[doc = $meaning] #[serde(rename = $text)] $name,)*
        }

        impl Code {
            /// Every code, in the order of the manual.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The code as it is printed and alerted on, such as `ROW-01`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means, in one sentence without a full stop.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

codes! {
    RowDiffers = "ROW-01": "a live row differs from its sealed version",
    RowMissing = "ROW-02": "a sealed row is missing from the database",
    RowUnknown = "ROW-03": "a row in the database was never sealed",
    RowReplaced = "ROW-04": "a change replaced a row that was not as it was sealed",
    CaptureGap = "CAP-01": "capture has a gap",
    DatabaseRewound = "CAP-02": "the database was rewound or forked",
    CaptureWeakened = "CAP-03": "capture was weakened",
    Truncated = "CAP-04": "a table was truncated",
    SchemaChanged = "CAP-05": "the schema of a guarded table changed",
    Unattributed = "ACT-01": "a change without an attributed actor",
    OutsideApplication = "ACT-02": "a change from outside the application",
    ReadOutsideRules = "ACT-03": "a read outside the rules",
    LineAltered = "TRL-01": "a trail line was altered",
    BlockMissing = "TRL-02": "a part of the trail is missing",
    TrailShort = "TRL-03": "the trail is shorter than its witnessed head",
    TrailForked = "TRL-04": "the trail is forked",
    Unsealed = "SEAL-01": "a block is unsealed for too long",
    SealInvalid = "SEAL-02": "a seal does not verify",
    ClockDisagrees = "CLK-01": "clocks disagree",
    EvidenceAltered = "EVD-01": "the evidence file is not as its trail's key signed it",
    OpeningInvalid = "EVD-02": "a disclosed value does not open its sealed commitment",
    SubjectMismatch = "EVD-03": "the evidence is not about the person it names",
}

impl Code {
    /// The version of lines that has it first (docs/spec/30-trail.md §8).
    pub(crate) fn version(self) -> u8 {
        match self {
            Self::RowReplaced => 6,
            _ => 1,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
