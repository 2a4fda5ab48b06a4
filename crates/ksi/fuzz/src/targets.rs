//! What must hold of every decoder, whatever bytes it is given.
//!
//! The fuzzer runs these, and `tests/corpus.rs` runs them over the committed
//! corpus, so that what was found once stays found without a fuzzer. Beyond not
//! panicking: what is accepted is written back, an error lies inside the input,
//! memory is bounded by the input, and two ways to the same answer agree.

use super::memory::bounded;
use pitser_ksi::{
    Algorithm, DecodeError, Imprint, Second, Signature,
    calendar_entry::CalendarEntry,
    chain::{AggregationChain, CalendarChain, MAX_SHAPE_LINKS, Metadata, Side, shape},
    hash::hash,
    logsig::{
        Block, BlockReader, BlockReport, BlockTree, BlockVerifier, Excerpt, Fault, Integration,
        IntegrationError, Lines, MAX_FAULTS, RecordChain, RecordFault, Seal, SealReader,
        encode_signed, extract, integrate, read_block, record_signature, verify_block,
    },
    pdu::{
        AggregationRequestPayload, AggregationResponsePayload, ExtendRequestPayload,
        ExtendResponsePayload, Payload, Pdu, Version, frame_len,
    },
    pki::{self, Certificate, Constraint, TrustAnchors},
    policy::{self, Context, Policy, examine},
    publication::{AuthenticationRecord, PublicationData, PublicationRecord, SignatureData},
    publications_file::PublicationsFile,
    tlv::{Element, MAX_VALUE, Reader, Writer},
    tree::TreeBuilder,
};
use std::{fmt::Debug, sync::LazyLock};

/// Elements read, and written anew; the values that elements hold.
pub fn tlv(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    let mut at = 0;
    while !reader.rest().is_empty() {
        let element = match reader.element() {
            Ok(element) => element,
            Err(error) => {
                inside(error, bytes);
                break;
            }
        };
        assert_eq!(
            (element.at, element.raw),
            (at, &bytes[at..][..element.raw.len()])
        );
        at += element.raw.len();
        assert_eq!(reader.position(), at);
        values(&element, bytes);
        written_anew(&element);
    }
    if bytes.len() <= MAX_VALUE {
        let mut writer = Writer::new();
        writer.nested(Signature::TAG, |w| w.raw(bytes));
        let outer = writer.finish().expect("it fits");
        let outer = Element::expect(&outer, Signature::TAG).expect("it was written so");
        assert_eq!(outer.value, bytes);
        assert!(
            outer
                .children()
                .map_while(Result::ok)
                .all(|child| child.at >= outer.value_at())
        );
    }
    if let Ok(imprint) = Imprint::from_bytes(bytes) {
        assert_eq!(imprint.as_bytes(), bytes);
        assert_eq!(imprint.to_string().parse(), Ok(imprint));
    }
    if let Ok(metadata) = checked(bytes, || Metadata::decode(bytes)) {
        let encoded = metadata.encode();
        assert!(Metadata::is_unambiguous(&encoded));
        // Texts are cut to what the format allows, numbers stay.
        let again = Metadata::decode(&encoded).expect("it was written so");
        assert_eq!(
            (again.sequence, again.request_time_us),
            (metadata.sequence, metadata.request_time_us)
        );
        assert!(metadata.client_id.starts_with(&again.client_id));
        assert_eq!(again.encode(), encoded);
    }
    let _ = Metadata::is_unambiguous(bytes);
}

fn values(element: &Element<'_>, bytes: &[u8]) {
    let mut writer = Writer::new();
    let tag = element.tag;
    let written = match element.value.len() {
        0..=8 => element
            .integer()
            .ok()
            .map(|value| writer.integer(tag, value)),
        _ => None,
    };
    if written.is_none()
        && let Ok(text) = element.string()
    {
        writer.string(tag, text);
    }
    let written = writer.finish().expect("it is as long as it was");
    if let Some(again) = Reader::new(&written).next() {
        assert_eq!(again.map(|again| again.value), Ok(element.value));
    }
    let errors = [
        element.integer().err(),
        element.byte().err(),
        element.string().err(),
        element.non_empty_string().err(),
        element.imprint().err(),
        element.algorithm().err(),
        element.ignore().err(),
    ];
    errors
        .into_iter()
        .flatten()
        .for_each(|error| inside(error, bytes));
}

fn written_anew(element: &Element<'_>) {
    let mut writer = Writer::new();
    writer.flagged(element.tag, element.flags(), element.value);
    let written = writer.finish().expect("it was read");
    let again = Element::single(&written).expect("it was written so");
    assert_eq!(
        (again.tag, again.flags(), again.value),
        (element.tag, element.flags(), element.value)
    );
    let needs_long = element.tag > 0x1f || element.value.len() > 0xff;
    assert_eq!(again.is_long(), needs_long);
    if element.is_long() == needs_long {
        assert_eq!(written, element.raw);
    }
}

/// A signature: its parts, all policies, extension, a local tree below it.
pub fn signature(bytes: &[u8]) {
    // A payload of a service's answer, which becomes one.
    if let Some((&level, children)) = bytes.split_first()
        && let Ok(made) = Signature::from_result(children, level)
    {
        assert_eq!(Signature::decode(made.as_bytes()).as_ref(), Ok(&made));
        assert!(made.input_level_max() >= level || made.rfc3161().is_some());
    }
    let Ok(signature) = checked(bytes, || Signature::decode(bytes)) else {
        return;
    };
    assert_eq!((signature.as_bytes(), &*signature.encode()), (bytes, bytes));
    assert!(bytes.ends_with(signature.children()));
    let chains = signature.aggregation_chains();
    assert_eq!(signature.outputs().count(), chains.len());
    assert_eq!(
        signature.outputs().last(),
        Some(signature.aggregation_output())
    );
    for name in signature.identities() {
        assert!(name.len() <= 3 * bytes.len());
    }
    bounded(bytes, || judged(&signature));
    extended(&signature);
    hung_below(&signature);
}

fn judged(signature: &Signature) {
    let document = Some(signature.input());
    for policy in POLICIES {
        let own = signature.publication().map(|record| record.data);
        let context = Context {
            document,
            level: signature.input_level_max(),
            publications: Some(&*RESIGNED),
            user_publication: own,
            ..Context::new(policy)
        };
        let report = examine(signature, &context);
        assert_eq!(report.verdict, policy::verify(signature, &context));
        if report.verdict.is_intact() {
            let other = Some(hash(signature.input().algorithm(), &[signature.as_bytes()]));
            let context = Context {
                document: other,
                ..context
            };
            assert!(!policy::verify(signature, &context).is_intact());
        }
    }
}

fn extended(signature: &Signature) {
    let Some(calendar) = signature.calendar() else {
        return;
    };
    let root = PublicationData {
        time: calendar.publication_time,
        imprint: calendar.output(),
    };
    let published = PublicationRecord::from(root);
    if let Ok(extended) = signature.extend_with(calendar, Some(&published)) {
        assert_eq!(extended.publication(), Some(&published));
        assert_eq!(extended.input(), signature.input());
        assert_eq!(
            extended.aggregation_output(),
            signature.aggregation_output()
        );
        assert_eq!(Signature::decode(extended.as_bytes()), Ok(extended));
    }
}

/// Puts a small tree below the signature, as the gateway of a site does.
fn hung_below(signature: &Signature) {
    let (chains, calendar) = (signature.aggregation_chains(), signature.calendar());
    let mut tree = TreeBuilder::new(chains[0].algorithm);
    for leaf in [chains[0].input, signature.aggregation_output()] {
        tree.push(leaf, 0).expect("there is room for two");
    }
    let tree = tree.finish().expect("it has leaves");
    let mut chains = chains.to_vec();
    chains[0].input = tree.root();
    let Ok(root) = Signature::new(&chains, calendar, signature.anchor()) else {
        return;
    };
    let (leaf, links) = (signature.aggregation_chains()[0].input, tree.links(0));
    let hung = root.hang(tree.algorithm(), leaf, links.clone());
    if root.input_level_max() < tree.level() {
        assert!(hung.is_err());
    } else if let Ok(hung) = hung {
        assert_eq!(hung.input(), leaf);
        assert_eq!(hung.aggregation_output(), root.aggregation_output());
        assert_eq!(hung.aggregation_chains().len(), chains.len() + 1);
        assert_eq!(Signature::decode(hung.as_bytes()), Ok(hung));
    }
    let elsewhere = hash(tree.algorithm(), &[leaf.as_bytes()]);
    assert!(root.hang(tree.algorithm(), elsewhere, links).is_err());
}

/// The parts of signatures, each alone in an element: chains, records.
pub fn chains(bytes: &[u8]) {
    if let Ok(entry) = checked(bytes, || CalendarEntry::decode(bytes)) {
        assert_eq!(entry.encode(), bytes);
    }
    let Ok(element) = checked(bytes, || Element::single(bytes)) else {
        return;
    };
    if let Ok(chain) = checked(bytes, || AggregationChain::decode(&element)) {
        reads_again(
            |w| chain.write(w),
            AggregationChain::decode,
            |again| *again == chain,
        );
        for level in [0, 1, 254] {
            let reached = chain.output(level).map(|(_, level)| level);
            assert_eq!(chain.output_level(level), reached);
        }
        let bits = shape(&chain.links).map(|shape| shape.ilog2() as usize);
        assert_eq!(bits, Some(chain.links.len()));
    }
    if let Ok(chain) = checked(bytes, || CalendarChain::decode(&element)) {
        // The aggregation time is always written, if only to repeat the other one.
        let same = |again: &CalendarChain| {
            again.time() == chain.time()
                && (again.publication_time, again.input, &again.links)
                    == (chain.publication_time, chain.input, &chain.links)
        };
        reads_again(|w| chain.write(w), CalendarChain::decode, same);
        assert!(chain.is_compatible_with(&chain));
        let siblings = [Side::Left, Side::Right].map(|side| chain.siblings(side).count());
        assert_eq!(siblings.iter().sum::<usize>(), chain.links.len());
        if let Some(entry) = CalendarEntry::of_chain(&chain) {
            assert_eq!((entry.time(), entry.round()), (chain.time(), chain.input));
            assert_eq!(CalendarEntry::decode(&entry.encode()), Ok(entry));
        }
        if let Some(time) = chain.time_from_shape() {
            assert!(time <= chain.publication_time);
        }
        let _ = chain.output();
    }
    if let Ok(record) = checked(bytes, || PublicationRecord::decode(&element)) {
        let tag = PublicationRecord::TAG;
        reads_again(
            |w| record.write(w, tag),
            PublicationRecord::decode,
            |again| *again == record,
        );
    }
    if let Ok(data) = checked(bytes, || PublicationData::decode(&element)) {
        assert_eq!(PublicationData::from_code(&data.to_code()), Ok(data));
        let flags = element.flags();
        reads_again(
            |w| data.write(w, flags),
            PublicationData::decode,
            |again| *again == data,
        );
    }
    if let Ok(data) = checked(bytes, || SignatureData::decode(&element)) {
        reads_again(
            |w| data.write(w),
            SignatureData::decode,
            |again| *again == data,
        );
        let _ = CERTIFICATE.verify_rsa(&data.oid, bytes, &data.value);
    }
    if let Ok(record) = checked(bytes, || AuthenticationRecord::decode(&element)) {
        let decode = AuthenticationRecord::decode;
        reads_again(|w| record.write(w), decode, |again| *again == record);
        assert!(
            bytes
                .windows(record.signed_bytes().len())
                .any(|part| part == record.signed_bytes())
        );
    }
}

/// What is written is read as the same, unless it grew beyond an element.
fn reads_again<T: Debug>(
    write: impl FnOnce(&mut Writer),
    decode: fn(&Element<'_>) -> Result<T, DecodeError>,
    is_same: impl FnOnce(&T) -> bool,
) {
    let mut writer = Writer::new();
    write(&mut writer);
    if let Ok(written) = writer.finish() {
        let element = Element::single(&written).expect("it was written so");
        let again = decode(&element).expect("what is written is read");
        assert!(is_same(&again), "{again:?}");
    }
}

/// What people type: publication codes, imprints, constraints, certificates.
pub fn text(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    if let Ok(publication) = bounded(bytes, || PublicationData::from_code(text)) {
        let code = publication.to_code();
        assert_eq!(PublicationData::from_code(&code), Ok(publication));
        // There is one way to write each, but for dashes, space and letter case.
        let letters = |text: &str| -> String {
            let code = text.split('=').next().unwrap_or_default();
            let letters = code
                .chars()
                .filter(|c| *c != '-' && !c.is_ascii_whitespace());
            letters.map(|c| c.to_ascii_uppercase()).collect()
        };
        assert_eq!(letters(text), letters(&code));
    }
    if let Ok(imprint) = bounded(bytes, || text.parse::<Imprint>()) {
        assert_eq!(imprint.to_string().parse(), Ok(imprint));
    }
    if let Ok(constraint) = bounded(bytes, || text.parse::<Constraint>()) {
        let again = constraint.to_string().parse::<Constraint>();
        assert_eq!(again.ok(), Some(constraint));
    }
    if let Some(algorithm) = Algorithm::from_name(text) {
        assert_eq!(Algorithm::from_id(algorithm.id()), Some(algorithm));
    }
    if let Ok(certificates) = bounded(bytes, || Certificate::many_from_pem(text)) {
        let first = Certificate::from_pem(text).expect("it is one of them");
        assert_eq!(first, certificates[0]);
    }
}

/// A publications file: its contents, its signature.
pub fn publications_file(bytes: &[u8]) {
    let Ok(file) = checked(bytes, || PublicationsFile::decode(bytes)) else {
        return;
    };
    assert_eq!(file.encode(), bytes);
    let publications = file.publications();
    for record in publications {
        let at = record.data.time;
        assert_eq!(file.at_time(at).map(|found| found.data.time), Some(at));
        assert_eq!(file.nearest(at).map(|found| found.data.time), Some(at));
        assert!(file.latest().is_some_and(|latest| latest.data.time >= at));
    }
    assert_eq!(file.latest().is_some(), !publications.is_empty());
    for record in file.certificates() {
        assert!(file.certificate(&record.id).is_some());
        let _ = Certificate::from_der(&record.der).map(|found| found.has_supported_key());
    }
    let _ = (file.created_at(), file.repository());
    if bounded(bytes, || file.verify(&ANCHORS, &*PUBLISHER, MID_2024)).is_ok() {
        // The key signed this and nothing else. The signature around it may differ:
        // it has parts that nothing covers, such as further certificates.
        let signed = [&*RESIGNED, &*DEPRECATED, &*ODD];
        assert!(
            signed.iter().any(|signed| {
                (signed.created_at(), signed.repository()) == (file.created_at(), file.repository())
                    && signed.certificates() == file.certificates()
                    && signed.publications() == file.publications()
            }),
            "a forged publications file"
        );
    }
}

/// Certificates, and signatures as publications files carry them.
pub fn pki(bytes: &[u8]) {
    if let Ok(certificate) = bounded(bytes, || Certificate::from_der(bytes)) {
        assert_eq!(certificate.der(), bytes);
        assert_eq!(certificate.id(), pki::certificate_id(bytes));
        let within = certificate.valid_from() <= MID_2024 && MID_2024 <= certificate.valid_until();
        assert_eq!(certificate.is_valid_at(MID_2024), within);
        let _ = (certificate.subject(), format!("{certificate:?}"));
        let _ = PUBLISHER
            .iter()
            .any(|constraint| constraint.is_met_by(&certificate));
        let verified = certificate.verify_rsa("1.2.840.113549.1.1.11", b"message", &[1; 256]);
        assert!(verified.is_err());
        let mut anchors = TrustAnchors::new();
        anchors.add(certificate.clone());
        anchors.add(certificate);
        assert_eq!(anchors.certificates().len(), 1);
    }
    let mut anchors = TrustAnchors::new();
    let _ = bounded(bytes, || anchors.add_pem_or_der(bytes));
    let signer = [Constraint::email("publications@example.org")];
    let verify = |content: &[u8]| {
        bounded(bytes, || {
            pki::verify_detached(content, bytes, &PKI_ANCHORS, &signer, EARLY_2027)
        })
    };
    if verify(PKI_CONTENT).is_ok() {
        assert!(verify(b"something else").is_err());
    }
}

/// Messages between client and aggregator.
pub fn aggregation(bytes: &[u8]) {
    message::<AggregationRequestPayload>(bytes, |_| ());
    message::<AggregationResponsePayload>(bytes, |payload| {
        if let AggregationResponsePayload::Result(result) = payload {
            let made = bounded(bytes, || Signature::from_result(&result.signature, 3));
            if let Ok(made) = made {
                assert_eq!(Signature::decode(made.as_bytes()), Ok(made));
            }
            let _ = result.status.aggregator_meaning();
        }
    });
}

/// Messages between client and extender.
pub fn extension(bytes: &[u8]) {
    message::<ExtendRequestPayload>(bytes, |_| ());
    message::<ExtendResponsePayload>(bytes, |payload| {
        if let ExtendResponsePayload::Result(result) = payload {
            let _ = result.calendar.as_ref().map(CalendarChain::output);
            let _ = result.status.extender_meaning();
        }
    });
}

fn message<P: Payload + Clone + PartialEq + Debug>(bytes: &[u8], look: impl Fn(&P)) {
    let framed = frame_len(bytes);
    let _ = framed.inspect_err(|error| inside(*error, bytes));
    let Ok(received) = checked(bytes, || Pdu::<P>::decode(bytes)) else {
        return;
    };
    assert_eq!(framed, Ok(Some(bytes.len())));
    let authentic = received.verify_mac(KEY);
    assert!(
        !(authentic && received.verify_mac(b"anom")),
        "two keys make one MAC"
    );
    assert!(!authentic || received.mac_algorithm().is_some());
    received.pdu.payloads.iter().for_each(look);
    assert!(!received.pdu.payloads.is_empty());
    if received.pdu.header.is_none() {
        return;
    }
    let algorithm = received.mac_algorithm().unwrap_or(Algorithm::Sha256);
    if let Ok(encoded) = received.pdu.encode(KEY, algorithm) {
        let again = Pdu::<P>::decode(&encoded).expect("what is written is read");
        assert!(again.verify_mac(KEY) && again.version == Version::V2);
        assert_eq!(again.login_id(), received.login_id());
        assert_eq!(again.pdu.payloads.len(), received.pdu.payloads.len());
        assert_eq!(again.pdu.encode(KEY, algorithm), Ok(encoded));
    }
}

/// A log signature, and after it the log.
pub fn log_signature(bytes: &[u8]) {
    let (file, log) = two(bytes);
    let Ok(blocks) = BlockReader::new(file) else {
        return;
    };
    let format = blocks.format();
    let mut lines = Lines::new(log);
    for block in blocks {
        let Ok(block) = block.inspect_err(|error| inside(*error, file)) else {
            return;
        };
        read_in_pieces(&block, file);
        let remaining = lines.clone();
        // Like a log that ends early, one of which a block wants more than there is.
        let reports = [
            all_at_once(&block, &mut lines),
            one_by_one(&block, &mut remaining.clone()),
        ];
        assert_eq!(reports[0], reports[1], "two ways to verify a block");
        let Ok(report) = &reports[0] else {
            continue;
        };
        assert!(report.faults.len() <= MAX_FAULTS + 4);
        assert!(report.first_wrong_line() <= Some(block.line_count()));
        assert!(report.is_followed_by(&block) || report.last_leaf != block.header.previous_leaf);
        same_tree(&block, report, remaining.clone());
        let level = format.signing_level(block.seal.count);
        taken_out(&block, report, level, remaining.clone());
        sealed_anew(&block, report, level, remaining);
    }
}

/// With a signature over whatever root the lines have, that fault is gone, and
/// no other comes or goes.
fn sealed_anew(block: &Block<'_>, report: &BlockReport, level: u8, lines: Lines<'_>) {
    let seal = encode_signed(block.seal.count, signed(report.root, level).as_bytes());
    let sealed = [block.unsealed_bytes(), &seal.expect("it is short")].concat();
    let sealed = read_block(&sealed, block.at).expect("only the seal is new");
    let sealed = sealed.expect("it is whole");
    let again = verify_block(&sealed, &mut lines.clone()).expect("the signature is sound");
    let others = |report: &BlockReport| -> Vec<Fault> {
        let others = report.faults.iter().filter(|fault| **fault != Fault::Root);
        others.copied().collect()
    };
    assert_eq!(others(report), others(&again));
    assert!(!again.faults.contains(&Fault::Root));
    taken_out(&sealed, &again, level, lines);
}

fn read_in_pieces(block: &Block<'_>, file: &[u8]) {
    let whole = &file[block.at..][..block.bytes.len()];
    assert_eq!(whole, block.bytes);
    assert!(whole.starts_with(block.unsealed_bytes()) && whole.ends_with(block.seal.bytes));
    assert_eq!(
        block.seal.at + block.seal.bytes.len(),
        block.at + whole.len()
    );
    let again = read_block(whole, 0)
        .expect("it was read")
        .expect("it is whole");
    assert_eq!(
        (again.header, again.line_count()),
        (block.header, block.line_count())
    );
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        assert!(
            read_block(&whole[..length], 0)
                .expect("more may come")
                .is_none()
        );
    }
    assert!(block.metarecords().count() as u64 <= block.seal.count);
}

fn all_at_once(block: &Block<'_>, lines: &mut Lines<'_>) -> Result<BlockReport, DecodeError> {
    bounded(block.bytes, || verify_block(block, lines))
}

fn one_by_one(block: &Block<'_>, lines: &mut Lines<'_>) -> Result<BlockReport, DecodeError> {
    let mut verifier = BlockVerifier::new(block);
    while verifier.lines_left() > 0
        && let Some(line) = lines.next()
    {
        verifier.line(line);
    }
    verifier.finish()
}

/// An intact block has the tree that is built from its lines.
fn same_tree(block: &Block<'_>, report: &BlockReport, mut lines: Lines<'_>) {
    let missing = report
        .faults
        .iter()
        .any(|fault| matches!(fault, Fault::LineMissing { .. }));
    let tree = BlockTree::of_block(block, &mut lines);
    if tree.is_some() {
        assert!(!missing);
    }
    if report.is_intact() {
        let tree = tree.expect("all lines are there");
        assert_eq!(tree.root(), Some((report.root, report.level)));
        assert_eq!(tree.count(), block.seal.count);
    }
}

/// What is taken out of a block proves itself; nothing else is taken out.
fn taken_out(block: &Block<'_>, report: &BlockReport, level: u8, mut lines: Lines<'_>) {
    let Ok(Some(taken)) = extract(block, &mut lines, |number| number % 3 == 0) else {
        return;
    };
    let Seal::Signature(signed) = block.seal.seal else {
        panic!("lines were taken out of an unsigned block");
    };
    assert_eq!(taken.lines.len(), taken.block.records.len());
    assert!(!report.faults.contains(&Fault::Root) || block.has_record_hashes());
    let signature = Signature::decode(signed).expect("its root was compared");
    for record in &taken.block.records {
        assert_eq!(record.root().0, signature.input());
        if let Ok(alone) = record_signature(&signature, record) {
            assert_eq!(alone.input(), record.record());
        }
    }
    let excerpt = Excerpt {
        blocks: vec![taken.block],
        is_legacy: level == 0,
    };
    assert_eq!(excerpt.check(taken.lines), Ok(Vec::new()));
    if let Ok(encoded) = excerpt.encode() {
        assert_eq!(Excerpt::decode(&encoded), Ok(excerpt));
    }
}

/// An integrity proof, and after it the lines it is about.
pub fn proof(bytes: &[u8]) {
    let (file, lines) = two(bytes);
    if let Ok(element) = Element::single(file)
        && let Ok(chain) = checked(file, || RecordChain::decode(&element))
    {
        path(&chain);
    }
    let Ok(excerpt) = checked(file, || Excerpt::decode(file)) else {
        return;
    };
    let encoded = excerpt.encode().expect("no element grew");
    assert_eq!(Excerpt::decode(&encoded).as_ref(), Ok(&excerpt));
    assert!(encoded.len() <= file.len());
    for block in &excerpt.blocks {
        let level = excerpt.signing_level(block);
        block.records.iter().for_each(path);
        let Ok(signature) = Signature::decode(&block.signature) else {
            continue;
        };
        for record in &block.records {
            assert!(excerpt.is_legacy || record.root().1 <= level);
            if let Ok(alone) = record_signature(&signature, record) {
                assert_eq!(record.root().0, signature.input());
                assert_eq!(alone.input(), record.record());
                assert_eq!(alone.aggregation_output(), signature.aggregation_output());
            }
        }
    }
    let _ = bounded(bytes, || excerpt.check(Lines::new(lines)));
    signed_anew(excerpt, lines);
}

/// With signatures over whatever roots the paths have, only other faults are left.
fn signed_anew(mut excerpt: Excerpt, lines: &[u8]) {
    for block in &mut excerpt.blocks {
        let first = block.records.first().map(RecordChain::root);
        let (root, level) = first.unwrap_or((Imprint::zero(Algorithm::Sha256), 0));
        let signature = signed(root, level);
        for record in &block.records {
            let fits = record.root().0 == root
                && record.root().1 <= signature.input_level_max()
                && record.steps().len() <= MAX_SHAPE_LINKS;
            assert_eq!(record_signature(&signature, record).is_ok(), fits);
        }
        block.signature = signature.encode();
    }
    let faults = excerpt.check(Lines::new(lines));
    for fault in faults.expect("every signature is sound") {
        assert!(
            !matches!(fault, RecordFault::Root { record: 0, .. }),
            "{fault:?}"
        );
    }
}

fn path(chain: &RecordChain) {
    let metarecord = chain.metarecord().map(<[u8]>::to_vec);
    let again = RecordChain::new(chain.record(), metarecord, chain.steps().to_vec());
    assert_eq!(again.as_ref(), Ok(chain));
    assert_eq!(chain.links().len(), chain.steps().len());
    if let Some(metarecord) = chain.metarecord() {
        assert_eq!(
            hash(chain.record().algorithm(), &[metarecord]),
            chain.record()
        );
        assert!(!chain.is_of_line(metarecord), "a metarecord is no line");
    }
}

/// The two parts of a log signature that waits for its seals.
pub fn parts(bytes: &[u8]) {
    let (blocks, seals) = two(bytes);
    if let Ok(seals_of_file) = SealReader::new(seals) {
        for seal in seals_of_file {
            match seal {
                Ok(seal) => assert_eq!(&seals[seal.at..][..seal.bytes.len()], seal.bytes),
                Err(error) => inside(error, seals),
            }
        }
    }
    let one_by_one =
        Integration::new(blocks, seals).and_then(|parts| parts.collect::<Result<Vec<_>, _>>());
    let whole = match bounded(bytes, || integrate(blocks, seals)) {
        Ok(whole) => whole,
        Err(error) => {
            match error {
                IntegrationError::Blocks(error) => inside(error, blocks),
                IntegrationError::Seals(error) => inside(error, seals),
                IntegrationError::StraySeal { at } => assert!(at < seals.len()),
                _ => {}
            }
            assert_eq!(one_by_one.err(), Some(error));
            return;
        }
    };
    let one_by_one = one_by_one.expect("the whole was made of them");
    let signed = one_by_one.iter().filter(|block| block.is_signed()).count();
    assert_eq!(whole.signed, signed as u64);
    assert_eq!(whole.signed + whole.unsigned, one_by_one.len() as u64);
    let again = BlockReader::new(&whole.bytes).expect("it was written so");
    let again: Vec<_> = again
        .collect::<Result<_, _>>()
        .expect("what is written is read");
    assert_eq!(again.len(), one_by_one.len());
    for (again, part) in again.iter().zip(&one_by_one) {
        assert_eq!(again.unsealed_bytes(), part.block.unsealed_bytes());
        assert_eq!(again.seal.bytes, part.seal.bytes);
    }
}

/// A signature that is well formed and signs `root` at `level`, by its own word.
/// Where the chains above leave no room for `level`, it signs at level 0.
fn signed(root: Imprint, level: u8) -> Signature {
    let mut chains = SIGNATURE.aggregation_chains().to_vec();
    chains[0].input = root;
    let at = |level: u8| {
        let mut chains = chains.clone();
        chains[0].links[0].correction = level;
        Signature::new(&chains, SIGNATURE.calendar(), SIGNATURE.anchor())
    };
    at(level)
        .or_else(|_| at(0))
        .expect("a published signature, with another input")
}

/// `bytes` as a first part, whose length the first three bytes tell, and a second.
fn two(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((&[high, middle, low], rest)) = bytes.split_first_chunk() else {
        return (&[], bytes);
    };
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    rest.split_at(length.min(rest.len()))
}

/// What a decoder says of `input`, within [`bounded`] memory, the same each time,
/// and its error inside the input.
#[track_caller]
fn checked<T: PartialEq + Debug>(
    input: &[u8],
    decode: impl Fn() -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let decoded = bounded(input, &decode);
    if let Err(error) = &decoded {
        inside(*error, input);
    }
    assert_eq!(decoded, decode(), "two readings of the same bytes");
    decoded
}

#[track_caller]
fn inside(error: DecodeError, input: &[u8]) {
    assert!(error.at <= input.len(), "{error}, of {}", input.len());
    assert!(!error.to_string().is_empty());
}

const KEY: &[u8] = b"anon";
/// When the signers of the test pack are valid, and when those of `pki` are.
const MID_2024: Second = Second(1_717_200_000);
const EARLY_2027: Second = Second(1_800_000_000);

macro_rules! testdata {
    ($path:expr) => {
        include_bytes!(concat!("../../../../testdata/ksi/", $path))
    };
}
macro_rules! pack {
    ($path:literal) => {
        testdata!(concat!(
            "test_pack/policy-verification-signatures/resources/",
            $path
        ))
    };
}

static SIGNATURE: LazyLock<Signature> = LazyLock::new(|| {
    Signature::decode(testdata!("tlv/ok-sig-2014-04-30.1.ksig")).expect("test data is sound")
});
static RESIGNED: LazyLock<PublicationsFile> =
    LazyLock::new(|| published(pack!("publications-file-resigned.bin")));
static DEPRECATED: LazyLock<PublicationsFile> = LazyLock::new(|| {
    published(pack!(
        "publications-file-for-deprecated-algorithm-in-calendar-chain.bin"
    ))
});
static ODD: LazyLock<PublicationsFile> = LazyLock::new(|| {
    published(testdata!(
        "publications/ksi-publications.invalid-cert.validity.bin"
    ))
});
static ANCHORS: LazyLock<TrustAnchors> = LazyLock::new(|| {
    trusting(pack!(
        "cert-file-for-deprecated-algorithm-in-calendar-chain.pem"
    ))
});
static PUBLISHER: LazyLock<[Constraint; 1]> =
    LazyLock::new(|| [Constraint::email("publications@guardtime.com")]);
static PKI_ANCHORS: LazyLock<TrustAnchors> =
    LazyLock::new(|| trusting(testdata!("pki/anchors.pem")));
const PKI_CONTENT: &[u8] = testdata!("pki/content.bin");
static CERTIFICATE: LazyLock<Certificate> = LazyLock::new(|| ANCHORS.certificates()[0].clone());

fn published(bytes: &[u8]) -> PublicationsFile {
    PublicationsFile::decode(bytes).expect("test data is sound")
}

fn trusting(certificates: &[u8]) -> TrustAnchors {
    let mut anchors = TrustAnchors::new();
    anchors
        .add_pem_or_der(certificates)
        .expect("test data is sound");
    anchors
}

const POLICIES: [Policy; 6] = [
    Policy::Internal,
    Policy::Key,
    Policy::Calendar,
    Policy::PublicationsFile,
    Policy::UserPublication,
    Policy::General,
];
