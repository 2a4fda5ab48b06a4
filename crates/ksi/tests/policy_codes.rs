//! Every code of the policies beyond the internal one, provoked in a small
//! calendar of our own: right by default, each case spoils one thing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::key;
use pitser_ksi::chain::{AggregationChain, CalendarChain, Link, Sibling, Side};
use pitser_ksi::hash::{Algorithm, Imprint, hash, node};
use pitser_ksi::pki::{SHA256_WITH_RSA, Signer, Subject, Validity, certificate_id, self_signed};
use pitser_ksi::policy::{
    Context, Extend, ExtendError, Outcome, Policy, Reason, Verdict, examine, verify,
};
use pitser_ksi::publication::{AuthenticationRecord, PublicationData, SignatureData};
use pitser_ksi::publications_file::{Contents, PublicationsFile};
use pitser_ksi::signature::{Anchor, Signature};
use pitser_ksi::time::Second;

const SIGNED: u64 = 5;
const SEALED: u64 = 7;
const PUBLISHED: u64 = 11;

/// A signature and all that is known about it.
struct World {
    calendar: Option<CalendarChain>,
    anchor: Option<Anchor>,
    /// The time for which the listed certificate is valid.
    certified: (u64, u64),
    publications: Vec<PublicationData>,
    without_file: bool,
    user: Option<PublicationData>,
    extender: Option<Extender>,
    extending_allowed: bool,
}

impl World {
    /// Signed in second 5, still sealed by the key alone; published in second 11.
    fn new() -> Self {
        Self {
            calendar: Some(chain(SEALED)),
            anchor: Some(authentication(root(SEALED))),
            certified: (SIGNED, SEALED),
            publications: vec![root(PUBLISHED)],
            without_file: false,
            user: None,
            extender: Some(Extender(|_| {})),
            extending_allowed: true,
        }
    }

    /// The same signature, extended to the publication.
    fn extended() -> Self {
        let anchor = Some(Anchor::Publication(root(PUBLISHED).into()));
        Self {
            calendar: Some(chain(PUBLISHED)),
            anchor,
            extender: None,
            ..Self::new()
        }
    }

    fn with<T>(self, policy: Policy, view: impl FnOnce(&Signature, &Context<'_>) -> T) -> T {
        let calendar = self.calendar.as_ref();
        let signature = Signature::new(&[aggregation()], calendar, self.anchor.as_ref()).unwrap();
        let signer = key("throw-away-rsa2048");
        let certificate = certificate(&signer, self.certified);
        let contents = Contents {
            certificates: vec![certificate.clone()],
            publications: self.publications.iter().copied().map(Into::into).collect(),
            ..Contents::default()
        };
        let file = PublicationsFile::build(&contents, &certificate, &signer).unwrap();
        let context = Context {
            publications: (!self.without_file).then_some(&file),
            user_publication: self.user,
            extender: self
                .extender
                .as_ref()
                .map(|extender| extender as &dyn Extend),
            extending_allowed: self.extending_allowed,
            ..Context::new(policy)
        };
        view(&signature, &context)
    }
}

/// Answers from the calendar, then meddles with the answer.
struct Extender(fn(&mut CalendarChain));

impl Extend for Extender {
    fn extend(&self, from: Second, to: Option<Second>) -> Result<CalendarChain, ExtendError> {
        let to = to.unwrap_or(Second(PUBLISHED));
        if from != Second(SIGNED) || to > Second(PUBLISHED) {
            return Err(ExtendError("outside the calendar".into()));
        }
        let mut answer = chain(to.0);
        (self.0)(&mut answer);
        Ok(answer)
    }
}

fn aggregation() -> AggregationChain {
    let sibling = Sibling::Imprint(leaf(1000));
    AggregationChain {
        aggregation_time: Second(SIGNED),
        index: vec![3],
        input_data: None,
        input: leaf(2000),
        algorithm: Algorithm::Sha256,
        links: vec![Link {
            side: Side::Left,
            correction: 0,
            sibling,
        }],
    }
}

fn leaf(second: u64) -> Imprint {
    match second {
        SIGNED => aggregation().output(0).unwrap().0,
        _ => hash(Algorithm::Sha256, &[&second.to_be_bytes()]),
    }
}

/// Root of the leaves `lo..=lo + r` (spec §3.2).
fn subtree(lo: u64, r: u64) -> Imprint {
    let Some(left_leaves) = r.checked_ilog2().map(|log| 1 << log) else {
        return leaf(lo);
    };
    let left = subtree(lo, left_leaves - 1);
    let right = subtree(lo + left_leaves, r - left_leaves);
    node(Algorithm::Sha256, left.as_bytes(), right.as_bytes(), 0xff)
}

fn root(time: u64) -> PublicationData {
    PublicationData {
        time: Second(time),
        imprint: subtree(0, time),
    }
}

/// The chain from the signed second to the root of second `to`.
fn chain(to: u64) -> CalendarChain {
    let (mut lo, mut r, mut links) = (0, to, Vec::new());
    while let Some(left_leaves) = r.checked_ilog2().map(|log| 1 << log) {
        if SIGNED < lo + left_leaves {
            links.push((Side::Left, subtree(lo + left_leaves, r - left_leaves)));
            r = left_leaves - 1;
        } else {
            links.push((Side::Right, subtree(lo, left_leaves - 1)));
            lo += left_leaves;
            r -= left_leaves;
        }
    }
    links.reverse();
    CalendarChain {
        publication_time: Second(to),
        aggregation_time: Some(Second(SIGNED)),
        input: leaf(SIGNED),
        links,
    }
}

fn certificate(signer: &dyn Signer, (from, until): (u64, u64)) -> Vec<u8> {
    let subject = Subject {
        common_name: "Calendar".into(),
        ..Subject::default()
    };
    let validity = Validity {
        from: Second(from),
        until: Second(until),
    };
    self_signed(&subject, validity, &[1], signer).unwrap()
}

fn authentication(data: PublicationData) -> Anchor {
    let signer = key("throw-away-rsa2048");
    let signature = SignatureData {
        oid: SHA256_WITH_RSA.into(),
        value: signer
            .sign_sha256_rsa(&AuthenticationRecord::message(&data))
            .unwrap(),
        certificate_id: certificate_id(&certificate(&signer, (SIGNED, SEALED))).into(),
        repository: None,
    };
    Anchor::Authentication(AuthenticationRecord::new(data, signature))
}

fn signature_data(world: &mut World, change: impl FnOnce(&mut SignatureData)) {
    let Some(Anchor::Authentication(record)) = &world.anchor else {
        panic!("no such record")
    };
    let mut signature = record.signature().clone();
    change(&mut signature);
    let record = AuthenticationRecord::new(*record.data(), signature);
    world.anchor = Some(Anchor::Authentication(record));
}

/// What `policy` makes of the world: "ok", a code, or why it is undecided.
fn judge(world: World, policy: Policy) -> String {
    match world.with(policy, verify) {
        Verdict::Intact { signed_at } => {
            assert_eq!(signed_at, Second(SIGNED));
            "ok".to_owned()
        }
        Verdict::Broken { code, .. } => code.to_string(),
        Verdict::Unconfirmed { code, reason } => {
            assert_eq!(code.to_string(), "GEN-02");
            match reason {
                Reason::Extender(_) => "Extender".to_owned(),
                reason => format!("{reason:?}"),
            }
        }
    }
}

fn check(policy: Policy, start: World, spoil: impl FnOnce(&mut World), expected: &str) {
    let mut world = start;
    spoil(&mut world);
    assert_eq!(judge(world, policy), expected);
}

/// The chain is unlike the signature's, yet of the right shape.
fn another_root(chain: &mut CalendarChain) {
    let (_, sibling) = chain
        .links
        .iter_mut()
        .find(|(side, _)| *side == Side::Left)
        .unwrap();
    *sibling = leaf(3000);
}

fn another_past(chain: &mut CalendarChain) {
    let (_, sibling) = chain
        .links
        .iter_mut()
        .find(|(side, _)| *side == Side::Right)
        .unwrap();
    *sibling = leaf(3000);
}

fn another_input(chain: &mut CalendarChain) {
    chain.input = leaf(3000);
}

/// The last link's side decides between a second and its neighbour.
fn another_shape(chain: &mut CalendarChain) {
    let (side, _) = &mut chain.links[0];
    *side = if *side == Side::Left {
        Side::Right
    } else {
        Side::Left
    };
}

#[test]
fn key_policy() {
    let check = |spoil: fn(&mut World), expected| check(Policy::Key, World::new(), spoil, expected);
    check(|_| {}, "ok");
    check(|w| w.extender = None, "ok");
    check(|w| signature_data(w, |s| s.value[0] ^= 1), "KEY-02");
    check(|w| signature_data(w, |s| s.value.truncate(10)), "KEY-02");
    check(
        |w| signature_data(w, |s| s.oid = "1.2.840.113549.1.1.13".into()),
        "KEY-02",
    );
    check(|w| signature_data(w, |s| s.oid = "no oid".into()), "KEY-02");
    check(|w| w.certified = (SIGNED + 1, SEALED), "UnknownCertificate");
    check(
        |w| signature_data(w, |s| s.certificate_id = vec![]),
        "UnknownCertificate",
    );
    check(|w| w.without_file = true, "NoPublicationsFile");
    check(|w| w.anchor = None, "NoAuthentication");
    check(|w| (w.calendar, w.anchor) = (None, None), "NoCalendarChain");
}

#[test]
fn key_outside_its_validity() {
    for certified in [(SIGNED + 1, SEALED), (0, SIGNED - 1)] {
        let mut world = World::new();
        let id = certificate_id(&certificate(&key("throw-away-rsa2048"), certified));
        world.certified = certified;
        signature_data(&mut world, |signature| signature.certificate_id = id.into());
        assert_eq!(judge(world, Policy::Key), "KEY-03");
    }
}

/// The first and the last second of the validity belong to it.
#[test]
fn key_on_the_borders_of_its_validity() {
    for certified in [(SIGNED, SIGNED), (0, SIGNED), (SIGNED, SIGNED + 1)] {
        let mut world = World::new();
        let id = certificate_id(&certificate(&key("throw-away-rsa2048"), certified));
        world.certified = certified;
        signature_data(&mut world, |signature| signature.certificate_id = id.into());
        assert_eq!(judge(world, Policy::Key), "ok", "{certified:?}");
    }
}

#[test]
fn calendar_policy() {
    let meet = |start: fn() -> World, meddle: fn(&mut CalendarChain), expected| {
        let spoil = |w: &mut World| w.extender = Some(Extender(meddle));
        check(Policy::Calendar, start(), spoil, expected);
    };
    let bare = || World {
        calendar: None,
        anchor: None,
        ..World::new()
    };
    for start in [World::new, World::extended, bare] {
        meet(start, |_| {}, "ok");
        check(
            Policy::Calendar,
            start(),
            |w| w.extender = None,
            "NoExtender",
        );
    }
    meet(World::new, another_root, "ok");
    meet(World::new, another_past, "CAL-04");
    meet(World::new, another_input, "CAL-02");
    meet(
        World::new,
        |chain| chain.aggregation_time = Some(Second(6)),
        "CAL-03",
    );
    meet(World::extended, another_root, "CAL-01");
    meet(World::extended, another_past, "CAL-01");
    meet(
        World::extended,
        |chain| chain.aggregation_time = Some(Second(6)),
        "CAL-03",
    );
    meet(bare, another_input, "CAL-02");
    meet(bare, another_shape, "CAL-03");
    meet(bare, |chain| chain.aggregation_time = None, "CAL-03");
    let not_allowed = |w: &mut World| w.extending_allowed = false;
    check(Policy::Calendar, World::new(), not_allowed, "ok");
}

#[test]
fn publications_file_policy() {
    let policy = Policy::PublicationsFile;
    let meet = |meddle: fn(&mut CalendarChain), expected| {
        check(
            policy,
            World::new(),
            |w| w.extender = Some(Extender(meddle)),
            expected,
        );
    };
    meet(|_| {}, "ok");
    meet(another_root, "PUB-01");
    meet(another_past, "PUB-01");
    meet(another_input, "PUB-01");
    meet(|chain| chain.publication_time = Second(12), "PUB-02");
    meet(|chain| chain.aggregation_time = Some(Second(6)), "PUB-02");
    let ungrounded = |w: &mut World| {
        let calendar = w.calendar.as_mut().unwrap();
        calendar.aggregation_time = None;
    };
    check(policy, World::new(), ungrounded, "INT-04");
    check(
        policy,
        World::new(),
        |w| w.without_file = true,
        "NoPublicationsFile",
    );
    check(
        policy,
        World::new(),
        |w| w.publications.clear(),
        "NoPublication",
    );
    check(
        policy,
        World::new(),
        |w| w.publications = vec![root(SIGNED - 1)],
        "NoPublication",
    );
    check(
        policy,
        World::new(),
        |w| w.publications = vec![root(12)],
        "Extender",
    );
    check(policy, World::new(), |w| w.extender = None, "NoExtender");
    check(
        policy,
        World::new(),
        |w| w.extending_allowed = false,
        "NoExtender",
    );
    check(
        policy,
        World::new(),
        |w| (w.calendar, w.anchor) = (None, None),
        "ok",
    );

    check(policy, World::extended(), |_| {}, "ok");
    check(
        policy,
        World::extended(),
        |w| w.publications[0].imprint = leaf(3000),
        "PUB-05",
    );
    check(
        policy,
        World::extended(),
        |w| w.publications[0].time = Second(9),
        "NoExtender",
    );
}

#[test]
fn user_publication_policy() {
    let policy = Policy::UserPublication;
    let given = |start: World| World {
        user: Some(root(PUBLISHED)),
        ..start
    };
    let meet = |meddle: fn(&mut CalendarChain), expected| {
        let spoil = |w: &mut World| w.extender = Some(Extender(meddle));
        check(policy, given(World::new()), spoil, expected);
    };
    meet(|_| {}, "ok");
    meet(another_root, "PUB-01");
    meet(|chain| chain.publication_time = Second(12), "PUB-02");
    check(policy, World::new(), |_| {}, "NoPublication");
    check(policy, given(World::new()), |w| w.without_file = true, "ok");
    check(
        policy,
        given(World::new()),
        |w| w.user = Some(root(SIGNED - 1)),
        "NoPublication",
    );
    check(
        policy,
        given(World::new()),
        |w| w.extending_allowed = false,
        "NoExtender",
    );
    check(policy, given(World::extended()), |_| {}, "ok");
    let other = |w: &mut World| {
        w.user = Some(PublicationData {
            imprint: leaf(1),
            ..root(PUBLISHED)
        })
    };
    check(policy, given(World::extended()), other, "PUB-04");
    check(policy, given(World::new()), other, "PUB-01");
}

/// The root of the very second covers it.
#[test]
fn a_publication_of_the_second_itself() {
    let at_once = |w: &mut World| w.user = Some(root(SIGNED));
    check(Policy::UserPublication, World::new(), at_once, "ok");
    let listed = |w: &mut World| w.publications = vec![root(SIGNED)];
    check(Policy::PublicationsFile, World::new(), listed, "ok");
}

/// The extender leads to the trusted root, but from another leaf: a signature
/// on another document of another second cannot borrow the proof.
#[test]
fn a_proof_of_something_else() {
    assert_eq!(
        something_else(World::new(), Policy::PublicationsFile),
        "PUB-03"
    );
}

/// What becomes of another signature in the same world.
fn something_else(world: World, policy: Policy) -> String {
    let mut other = aggregation();
    other.input = leaf(4000);
    let mut calendar = world.calendar.clone().unwrap();
    calendar.input = other.output(0).unwrap().0;
    let signature = Signature::new(&[other], Some(&calendar), None).unwrap();
    let verdict = world.with(policy, |_, context| verify(&signature, context));
    verdict.code().unwrap().to_string()
}

/// Where two rules are broken, the code is that of the first.
#[test]
fn the_first_broken_rule_decides() {
    let meet = |policy, start: fn() -> World, meddle: fn(&mut CalendarChain), expected| {
        let spoil = |w: &mut World| w.extender = Some(Extender(meddle));
        check(policy, start(), spoil, expected);
    };
    let bare = || World {
        calendar: None,
        anchor: None,
        ..World::new()
    };
    let later = |chain: &mut CalendarChain| chain.aggregation_time = Some(Second(6));
    let calendar = Policy::Calendar;
    meet(
        calendar,
        World::new,
        |c| (another_past(c), another_input(c)).1,
        "CAL-04",
    );
    meet(
        calendar,
        World::new,
        |c| (another_past(c), another_shape(c)).1,
        "CAL-04",
    );
    meet(
        calendar,
        World::extended,
        |c| (another_root(c), another_input(c)).1,
        "CAL-01",
    );
    meet(
        calendar,
        World::extended,
        |c| (another_root(c), another_shape(c)).1,
        "CAL-01",
    );
    meet(
        calendar,
        bare,
        |c| (another_input(c), another_shape(c)).1,
        "CAL-02",
    );
    meet(calendar, bare, later, "CAL-03");
    let published = Policy::PublicationsFile;
    meet(
        published,
        World::new,
        |c| {
            another_root(c);
            c.publication_time = Second(12);
        },
        "PUB-01",
    );
    // The root is right, yet it is of another second, and of something else.
    let mut world = World::new();
    world.extender = Some(Extender(|c| c.publication_time = Second(12)));
    assert_eq!(something_else(world, published), "PUB-02");

    // An expired key that signed nothing, listed nowhere.
    let mut world = World::new();
    world.certified = (0, SIGNED - 1);
    let id = certificate_id(&certificate(&key("throw-away-rsa2048"), world.certified));
    signature_data(&mut world, |signature| {
        signature.certificate_id = id.into();
        signature.value[0] ^= 1;
    });
    assert_eq!(judge(world, Policy::Key), "KEY-03");
    check(
        Policy::Key,
        World::new(),
        |w| signature_data(w, |s| (s.certificate_id, s.value) = (vec![], vec![])),
        "UnknownCertificate",
    );
}

#[test]
fn general_takes_the_strongest_proof() {
    let policy = Policy::General;
    check(policy, World::new(), |_| {}, "ok");
    check(policy, World::extended(), |_| {}, "ok");
    // No publication yet: the key decides, and its failure is one.
    check(policy, World::new(), |w| w.publications.clear(), "ok");
    let unpublished_and_forged = |w: &mut World| {
        w.publications.clear();
        signature_data(w, |signature| signature.value[0] ^= 1);
    };
    check(policy, World::new(), unpublished_and_forged, "KEY-02");
    // A contradiction is not outvoted by the key.
    let meddled = |w: &mut World| w.extender = Some(Extender(another_root));
    check(policy, World::new(), meddled, "PUB-01");
    // A publication that the caller brings stands alone.
    let wrong = |w: &mut World| {
        w.user = Some(PublicationData {
            imprint: leaf(1),
            ..root(PUBLISHED)
        })
    };
    check(policy, World::new(), wrong, "PUB-01");
    let late = |w: &mut World| w.user = Some(root(12));
    check(policy, World::new(), late, "Extender");
    // Nothing at hand.
    check(
        policy,
        World::new(),
        |w| w.without_file = true,
        "NoPublicationsFile",
    );
    check(
        policy,
        World::extended(),
        |w| w.publications.clear(),
        "NoPublication",
    );
    check(
        policy,
        World::new(),
        |w| (w.anchor, w.publications) = (None, vec![]),
        "NoPublication",
    );
}

#[test]
fn a_report_says_what_was_waited_for() {
    let mut world = World::new();
    world.publications.clear();
    let report = world.with(Policy::General, examine);
    assert!(report.verdict.is_intact());
    let undecided: Vec<_> = report
        .checks
        .iter()
        .filter(|check| matches!(check.outcome, Outcome::Undecided(Reason::NoPublication)))
        .map(|check| check.step.to_string())
        .collect();
    assert_eq!(
        undecided,
        ["publication: publications file has a later publication"]
    );
}
