//! An authority whose calendar began in 1970 and holds nothing but our blocks.

use pitser_ksi::chain::{AggregationChain, CalendarChain, Link, Sibling, Side};
use pitser_ksi::hash::{Algorithm, Imprint, hash, node};
use pitser_ksi::pki::{
    RsaSigner, SHA256_WITH_RSA, Signer, Subject, Validity, certificate_id, self_signed,
};
use pitser_ksi::publication::{AuthenticationRecord, PublicationData, SignatureData};
use pitser_ksi::publications_file::{Contents, PublicationsFile};
use pitser_ksi::signature::{Anchor, Signature};
use pitser_ksi::time::Second;
use std::collections::BTreeMap;

pub(crate) const CONSTRAINT: &str = "email=publications@example.org";

/// Which root was signed in which second.
#[derive(Clone)]
pub(crate) struct Calendar(BTreeMap<u64, AggregationChain>);

impl Calendar {
    pub(crate) fn new(signed: impl IntoIterator<Item = (u64, (Imprint, u8))>) -> Self {
        Self(
            signed
                .into_iter()
                .map(|(at, (root, level))| (at, aggregation(at, root, level)))
                .collect(),
        )
    }

    /// The signature of second `at`, extended to the publication of second `to`.
    pub(crate) fn published(&self, at: u64, to: u64) -> Vec<u8> {
        let anchor = Anchor::Publication(self.publication(to).into());
        self.signature(at, to, &anchor)
    }

    /// The signature of second `at`, as it comes from the authority.
    pub(crate) fn keyed(&self, at: u64) -> Vec<u8> {
        let data = self.publication(at);
        let signature = SignatureData {
            oid: SHA256_WITH_RSA.into(),
            value: signer()
                .sign_sha256_rsa(&AuthenticationRecord::message(&data))
                .unwrap(),
            certificate_id: certificate_id(&certificate()).into(),
            repository: None,
        };
        let anchor = Anchor::Authentication(AuthenticationRecord::new(data, signature));
        self.signature(at, at, &anchor)
    }

    fn signature(&self, at: u64, to: u64, anchor: &Anchor) -> Vec<u8> {
        let chain = self.chain(at, to);
        Signature::new(&[self.0[&at].clone()], Some(&chain), Some(anchor))
            .unwrap()
            .encode()
    }

    /// The calendar's root at second `time`.
    pub(crate) fn publication(&self, time: u64) -> PublicationData {
        PublicationData {
            time: Second(time),
            imprint: self.subtree(0, time),
        }
    }

    /// A publications file with one publication and the authority's certificate.
    pub(crate) fn file(&self, published: u64) -> Vec<u8> {
        let contents = Contents {
            created_at: Second(published),
            repository: None,
            certificates: vec![certificate()],
            publications: vec![self.publication(published).into()],
        };
        PublicationsFile::build(&contents, &certificate(), &signer())
            .unwrap()
            .encode()
            .to_vec()
    }

    pub(crate) fn leaf(&self, second: u64) -> Imprint {
        match self.0.get(&second) {
            Some(chain) => chain.output(0).unwrap().0,
            None => Imprint::zero(Algorithm::Sha256),
        }
    }

    /// Root of the leaves `lo..=lo + r` (docs/spec/20-calendar.md §2).
    fn subtree(&self, lo: u64, r: u64) -> Imprint {
        let Some(left_leaves) = r.checked_ilog2().map(|log| 1 << log) else {
            return self.leaf(lo);
        };
        let left = self.subtree(lo, left_leaves - 1);
        let right = self.subtree(lo + left_leaves, r - left_leaves);
        node(Algorithm::Sha256, left.as_bytes(), right.as_bytes(), 0xff)
    }

    pub(crate) fn chain(&self, from: u64, to: u64) -> CalendarChain {
        let (mut lo, mut r, mut links) = (0, to, Vec::new());
        while let Some(left_leaves) = r.checked_ilog2().map(|log| 1 << log) {
            if from < lo + left_leaves {
                links.push((Side::Left, self.subtree(lo + left_leaves, r - left_leaves)));
                r = left_leaves - 1;
            } else {
                links.push((Side::Right, self.subtree(lo, left_leaves - 1)));
                lo += left_leaves;
                r -= left_leaves;
            }
        }
        links.reverse();
        CalendarChain {
            publication_time: Second(to),
            aggregation_time: Some(Second(from)),
            input: self.leaf(from),
            links,
        }
    }
}

/// The certificate in PEM, for an anchors file.
pub(crate) fn certificate_pem() -> String {
    let body = data_encoding::BASE64.encode(&certificate());
    let lines: Vec<_> = body
        .as_bytes()
        .chunks(64)
        .map(|l| std::str::from_utf8(l).unwrap())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

fn aggregation(at: u64, root: Imprint, level: u8) -> AggregationChain {
    let sibling = Sibling::Imprint(hash(
        Algorithm::Sha256,
        &[b"another client of second", &at.to_be_bytes()],
    ));
    AggregationChain {
        aggregation_time: Second(at),
        index: vec![3],
        input_data: None,
        input: root,
        algorithm: Algorithm::Sha256,
        links: vec![Link {
            side: Side::Left,
            correction: level,
            sibling,
        }],
    }
}

fn certificate() -> Vec<u8> {
    let subject = Subject {
        common_name: "Calendar".into(),
        email: "publications@example.org".into(),
        ..Subject::default()
    };
    let validity = Validity {
        from: Second(1),
        until: Second(1_000),
    };
    self_signed(&subject, validity, &[1], &signer()).unwrap()
}

fn signer() -> RsaSigner {
    let pem = include_str!("../../../../testdata/ksi/keys/throw-away-rsa2048.pem");
    RsaSigner::from_pkcs8_pem(pem).unwrap()
}
