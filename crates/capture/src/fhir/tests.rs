//! Real events, IHE's examples, and hostile ones.

use std::path::Path;

use super::*;

/// Files of `testdata/balp`, with their names.
fn examples() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/balp");
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(path).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

fn example(name: &str) -> Vec<u8> {
    examples()
        .into_iter()
        .find(|(file, _)| file == name)
        .unwrap()
        .1
}

#[test]
fn ihe_examples_keep_their_own_profile() {
    let examples = examples();
    assert_eq!(examples.len(), 31);
    for (name, bytes) in examples {
        let event = parse_audit_event(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(event.profile_violations, Vec::<String>::new(), "{name}");
        assert_eq!(
            event.app.as_deref(),
            Some("myMachine.example.org"),
            "{name}"
        );
        assert_eq!(
            event.client.as_deref(),
            Some("2001:0db8:85a3:0000:0000:8a2e:0370:7334"),
            "{name}"
        );
        assert_eq!(
            event.patients.is_empty(),
            name.contains("NoPatient"),
            "{name}"
        );
        assert_eq!(
            event.person.is_none(),
            name.contains("NoUser") || name.contains("UpdateNoPatient"),
            "{name}"
        );
        assert_eq!(event.outcome, Some(Outcome::Success), "{name}");
        let claim = match name.trim_start_matches("ex-auditBasic") {
            rest if rest.starts_with("Create") => Claim::Create,
            rest if rest.starts_with("Read") => Claim::Read,
            rest if rest.starts_with("Update") || rest.starts_with("Patch") => Claim::Update,
            rest if rest.starts_with("Delete") => Claim::Delete,
            _ => Claim::Query,
        };
        assert_eq!(event.claim, claim, "{name}");
        assert_eq!(event.has_query, claim == Claim::Query, "{name}");
    }
}

#[test]
fn read_as_both_sides_report_it() {
    let client = parse_audit_event(&example("ex-auditBasicReadClient.json")).unwrap();
    let server = parse_audit_event(&example("ex-auditBasicReadServer.json")).unwrap();
    assert_eq!(
        client.request_id.as_deref(),
        Some("76d148b6-586d-11ec-bf63-0242ac130002")
    );
    assert_eq!(client.request_id, server.request_id);
    assert_eq!(client.person.as_ref().unwrap().expose(), "John Smith");
    assert_eq!(client.recorded, "2020-04-29T09:49:00.000000Z");
    assert_eq!(
        client.patients,
        [Patient::Id {
            base: None,
            id: "ex-patient".to_owned()
        }]
    );
    assert_eq!(
        client.data,
        [Resource {
            base: None,
            kind: "List".to_owned(),
            id: "ex-list".to_owned()
        }]
    );
}

#[test]
fn events_of_a_real_server_are_accepted_and_flagged() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/balp/real-helios-hfs-0.2.7-audit.ndjson");
    let text = std::fs::read_to_string(path).unwrap();
    let events: Vec<AuditEvent> = text
        .lines()
        .map(|line| parse_audit_event(line.as_bytes()).unwrap())
        .collect();
    assert_eq!(events.len(), 14);
    for event in &events {
        assert_eq!(event.person, None);
        assert!(
            event
                .profile_violations
                .iter()
                .any(|violation| violation == "resourceType: is missing")
        );
        assert!(
            event
                .profile_violations
                .iter()
                .any(|violation| violation == "agent[user].who: is missing")
        );
    }
    let read = events
        .iter()
        .find(|event| event.claim == Claim::Read)
        .unwrap();
    assert_eq!(read.patients.len(), 1, "named twice, counted once");
    assert!(
        read.profile_violations
            .iter()
            .any(|v| v == "agent[client]: must be there exactly once")
    );
    assert!(events.iter().any(|event| event.claim == Claim::Query));
}

const EVENT: &str = r#"{"resourceType":"AuditEvent","type":{"system":"http://terminology.hl7.org/CodeSystem/audit-event-type","code":"rest"},
"recorded":"2026-03-14T09:26:53+02:00","agent":[{"requestor":true}],"source":{"observer":{"display":"x"}}}"#;

/// EVENT with one part replaced.
fn with(from: &str, to: &str) -> Vec<u8> {
    assert!(EVENT.contains(from));
    EVENT.replacen(from, to, 1).into_bytes()
}

#[track_caller]
fn refused(bytes: &[u8], problem: Problem, path: &str) {
    let error = parse_audit_event(bytes).unwrap_err();
    assert_eq!(
        (error.problem, error.path.as_str()),
        (problem, path),
        "{error}"
    );
    let outcome = error.to_operation_outcome();
    assert_eq!(outcome["issue"][0]["severity"], "error");
    assert!(!outcome.to_string().contains("SECRET"), "{outcome}");
}

#[test]
fn least_event() {
    let event = parse_audit_event(EVENT.as_bytes()).unwrap();
    assert_eq!(event.recorded, "2026-03-14T07:26:53.000000Z");
    assert_eq!(event.claim, Claim::Other);
}

#[test]
fn other_things_are_refused() {
    refused(b"", Problem::Syntax, "");
    refused(b"\xFF", Problem::Syntax, "");
    refused(b"[]", Problem::Invalid, "AuditEvent");
    refused(b"{}", Problem::Required, "AuditEvent.type");
    refused(b"{\"a\": SECRET}", Problem::Syntax, "");
    refused(
        &with("\"AuditEvent\"", "\"Patient\""),
        Problem::Invalid,
        "AuditEvent.resourceType",
    );
    refused(
        &with("\"AuditEvent\"", "7"),
        Problem::Invalid,
        "AuditEvent.resourceType",
    );
    refused(&[b'['; 1000], Problem::Syntax, "");
    refused(&vec![b' '; MAX_EVENT + 1], Problem::TooLarge, "");
}

#[test]
fn required_elements_are_named() {
    refused(
        &with("\"type\"", "\"tipe\""),
        Problem::Required,
        "AuditEvent.type",
    );
    refused(
        &with("\"recorded\"", "\"x\""),
        Problem::Required,
        "AuditEvent.recorded",
    );
    refused(
        &with("\"agent\":[{\"requestor\":true}]", "\"agent\":[]"),
        Problem::Required,
        "AuditEvent.agent",
    );
    refused(
        &with("[{\"requestor\":true}]", "{}"),
        Problem::Invalid,
        "AuditEvent.agent",
    );
    refused(
        &with("{\"requestor\":true}", "{}"),
        Problem::Required,
        "AuditEvent.agent[0].requestor",
    );
    refused(
        &with("true", "\"SECRET\""),
        Problem::Invalid,
        "AuditEvent.agent[0].requestor",
    );
    refused(
        &with("\"source\"", "\"x\""),
        Problem::Required,
        "AuditEvent.source",
    );
    refused(
        &with("\"observer\"", "\"x\""),
        Problem::Required,
        "AuditEvent.source.observer",
    );
}

#[test]
fn values_that_cannot_be() {
    refused(
        &with("2026-03-14T09:26:53+02:00", "SECRET"),
        Problem::Invalid,
        "AuditEvent.recorded",
    );
    refused(
        &with("2026-03-14T09:26:53+02:00", "2026-03-14"),
        Problem::Invalid,
        "AuditEvent.recorded",
    );
    refused(
        &with("2026-03-14T09:26:53+02:00", "2026-03-14T09:26:53"),
        Problem::Invalid,
        "AuditEvent.recorded",
    );
    refused(
        &with("\"agent\"", "\"action\":\"SECRET\",\"agent\""),
        Problem::Invalid,
        "AuditEvent.action",
    );
    refused(
        &with("\"agent\"", "\"outcome\":\"SECRET\",\"agent\""),
        Problem::Invalid,
        "AuditEvent.outcome",
    );
}

#[test]
fn a_key_given_twice_is_refused_wherever_it_stands() {
    refused(
        &with(
            "\"agent\"",
            "\"recorded\":\"2026-03-14T09:26:53Z\",\"agent\"",
        ),
        Problem::Syntax,
        "",
    );
    refused(
        &with(
            "\"agent\"",
            "\"x\":[{\"y\":{\"SECRET\":1,\"SECRET\":1}}],\"agent\"",
        ),
        Problem::Syntax,
        "",
    );
}

/// The subjects of an event whose one entity is this.
#[track_caller]
fn subjects(entity: &str) -> AuditEvent {
    let bytes = with("\"agent\"", &format!("\"entity\":[{entity}],\"agent\""));
    parse_audit_event(&bytes).unwrap()
}

#[test]
fn patients_in_every_form() {
    let id = |base: Option<&str>, id: &str| Patient::Id {
        base: base.map(str::to_owned),
        id: id.to_owned(),
    };
    for (entity, patient) in [
        (r#"{"what":{"reference":"Patient/1"}}"#, id(None, "1")),
        (
            r#"{"what":{"reference":"Patient/1/_history/3"}}"#,
            id(None, "1"),
        ),
        (
            r#"{"what":{"reference":"https://a.example/fhir/Patient/1"}}"#,
            id(Some("https://a.example/fhir"), "1"),
        ),
        (
            r#"{"role":{"code":"1"},"what":{"identifier":{"system":"https://fhir.ee/sid/pid/est/ni","value":"38001085718"}}}"#,
            Patient::Identifier {
                system: Some("https://fhir.ee/sid/pid/est/ni".to_owned()),
                value: "38001085718".to_owned(),
            },
        ),
        (
            r#"{"what":{"type":"Patient","identifier":{"value":"7"}}}"#,
            Patient::Identifier {
                system: None,
                value: "7".to_owned(),
            },
        ),
        (
            r#"{"role":{"code":"1"},"what":{"reference":"urn:uuid:0-1"}}"#,
            Patient::Urn("urn:uuid:0-1".to_owned()),
        ),
    ] {
        let event = subjects(entity);
        assert_eq!(
            (event.patients, event.patient_unknown),
            (vec![patient], false),
            "{entity}"
        );
    }
}

#[test]
fn patients_who_are_not_named() {
    for entity in [
        r#"{"role":{"code":"1"}}"#,
        r#"{"role":{"code":"1"},"what":{"display":"Mari"}}"#,
        r##"{"role":{"code":"1"},"what":{"reference":"#p"}}"##,
        r#"{"what":{"type":"Patient"}}"#,
        r#"{"what":{"reference":"Patient?identifier=38001085718"}}"#,
        r#"{"what":{"reference":"https://a/fhir/Patient?identifier=38001085718"}}"#,
        r#"{"what":{"reference":"Patient/38001085718/"}}"#,
    ] {
        let event = subjects(entity);
        assert_eq!(
            (event.patients, event.patient_unknown),
            (vec![], true),
            "{entity}"
        );
    }
}

#[test]
fn other_records() {
    let event = subjects(
        r#"{"what":{"reference":"http://a/Observation/123"}},{"what":{"reference":"urn:uuid:1"}},{"what":{"reference":"../etc/passwd"}}"#,
    );
    assert_eq!(event.data.len(), 1);
    assert_eq!(
        (event.data[0].kind.as_str(), event.data[0].id.as_str()),
        ("Observation", "123")
    );
    assert!(!event.patient_unknown);
}

#[test]
fn person_and_purpose() {
    let agent = r#"{"requestor":true},{"requestor":true,"name":"Dr Kask","who":{"display":"Mari Kask",
        "identifier":{"system":"https://fhir.ee/sid/pid/est/ni","value":"47101010033"}},
        "network":{"address":"10.0.0.7","type":"2"},"purposeOfUse":[{"coding":[{"code":"ETREAT"},{"code":"TREAT"}]}]}"#;
    let bytes = with("{\"requestor\":true}", agent);
    let bytes = String::from_utf8(bytes).unwrap().replacen(
        "\"agent\"",
        "\"purposeOfEvent\":[{\"coding\":[{\"code\":\"TREAT\"}]}],\"agent\"",
        1,
    );
    let event = parse_audit_event(bytes.as_bytes()).unwrap();
    assert_eq!(event.person.as_ref().unwrap().expose(), "47101010033");
    assert_eq!(
        event.person_system.as_deref(),
        Some("https://fhir.ee/sid/pid/est/ni")
    );
    assert_eq!(event.client.as_deref(), Some("10.0.0.7"));
    assert_eq!(event.purpose, ["TREAT", "ETREAT"]);
}

#[test]
fn debug_output_names_nobody() {
    for (name, bytes) in examples() {
        let shown = format!("{:?}", parse_audit_event(&bytes).unwrap());
        for secret in [
            "John Smith",
            "Betty Jones",
            "Charley Miller",
            "ex-patient",
            "ex-list",
        ] {
            assert!(!shown.contains(secret), "{name}: {shown}");
        }
    }
}

#[test]
fn bundle_keeps_each_entrys_bytes() {
    let bundle = format!(
        r#"{{"resourceType":"Bundle","type":"batch","entry":[
        {{"resource": {EVENT} ,"request":{{"method":"POST","url":"AuditEvent"}}}},
        {{"resource":{{"resourceType":"Patient"}}}},
        {{"resource":{EVENT},"request":{{"method":"DELETE","url":"AuditEvent/1"}}}},
        {{"request":{{"method":"POST"}}}}]}}"#
    );
    assert!(is_bundle(bundle.as_bytes()) && !is_bundle(EVENT.as_bytes()));
    let entries = parse_bundle(bundle.as_bytes()).unwrap();
    let taken = |entry: &Result<&[u8], FhirError>| match entry {
        Ok(raw) => String::from_utf8(raw.to_vec()).unwrap(),
        Err(error) => format!("{:?} {}", error.problem, error.path),
    };
    let taken: Vec<String> = entries.iter().map(taken).collect();
    assert_eq!(
        taken,
        [
            EVENT,
            r#"{"resourceType":"Patient"}"#,
            "Invalid Bundle.entry[2].request.method",
            "Required Bundle.entry[3].resource"
        ]
    );
}

#[test]
fn no_more_entries_are_kept_than_are_taken() {
    let bundle = |count: usize| {
        let entries = vec!["{}"; count].join(",");
        format!(r#"{{"resourceType":"Bundle","type":"batch","entry":[{entries}]}}"#)
    };
    let taken = bundle(MAX_ENTRIES);
    assert_eq!(parse_bundle(taken.as_bytes()).unwrap().len(), MAX_ENTRIES);
    assert!(parse_bundle(bundle(MAX_ENTRIES + 1).as_bytes()).is_err());
    let error = parse_bundle(bundle(MAX_ENTRIES + 7).as_bytes()).unwrap_err();
    assert_eq!(
        (error.problem, error.issue_code()),
        (Problem::TooMany, "too-costly")
    );
    let why = "10007 entries; at most 10000 are taken: send several Bundles";
    assert_eq!(error.to_string(), format!("Bundle.entry: {why}"));
}

/// What stands in every line of an event is short, whatever the sender writes; the event is
/// taken as it is.
#[test]
fn of_long_texts_the_beginning_is_told() {
    let long = "õ".repeat(MAX_TEXT);
    let agent = format!(
        r#"{{"requestor":true,"who":{{"display":"{long}"}},"network":{{"address":"{long}"}},"purposeOfUse":[{{"coding":[{{"code":"{long}"}}]}}]}},
        {{"requestor":false,"type":{{"coding":[{{"code":"110152"}}]}},"who":{{"display":"{long}"}}}}"#
    );
    let bytes = with("{\"requestor\":true}", &agent);
    let text = String::from_utf8(bytes).unwrap();
    let text = text.replacen("\"agent\"", "\"action\":\"R\",\"agent\"", 1);
    let event = parse_audit_event(text.as_bytes()).unwrap();
    let brief = format!("{}…", "õ".repeat(MAX_TEXT / 2));
    assert_eq!(event.person.unwrap().expose(), brief);
    assert_eq!(event.app.as_ref(), Some(&brief));
    assert_eq!(event.client.as_ref(), Some(&brief));
    assert_eq!(event.purpose, [brief]);
    let told = "agent: a text is longer than 500 bytes, and the trail's lines have its beginning";
    assert_eq!(event.profile_violations.last().unwrap(), told);
    let kind = format!("A{}", "a".repeat(MAX_KIND));
    let event = subjects(&format!(r#"{{"what":{{"reference":"{kind}/1"}}}}"#));
    assert_eq!(event.data, []);
}

#[test]
fn other_bundles_are_refused() {
    for bundle in [
        r#"{"resourceType":"Bundle","type":"searchset","entry":[]}"#,
        r#"{"resourceType":"AuditEvent","type":"batch"}"#,
        r#"{"resourceType":"Bundle","type":"batch","type":"batch"}"#,
        r#"{"resourceType":"Bundle","type":"batch","entry":{}}"#,
        "",
    ] {
        assert!(parse_bundle(bundle.as_bytes()).is_err(), "{bundle}");
    }
    assert_eq!(
        parse_bundle(br#"{"resourceType":"Bundle","type":"batch"}"#)
            .unwrap()
            .len(),
        0
    );
}

/// An event of the greatest size, all of it patients, codes and clients.
#[test]
fn crowded_event_takes_linear_time() {
    let many = |count: usize, item: &dyn Fn(usize) -> String| {
        (0..count).map(item).collect::<Vec<_>>().join(",")
    };
    let patients = many(14_000, &|n| {
        format!(r#"{{"what":{{"reference":"Patient/{n}"}}}}"#)
    });
    let codes = many(20_000, &|n| format!(r#"{{"code":"{n}"}}"#));
    let head =
        format!(r#""purposeOfEvent":[{{"coding":[{codes}]}}],"entity":[{patients}],"agent""#);
    let event = parse_audit_event(&with("\"agent\"", &head)).unwrap();
    assert_eq!(
        (event.patients.len(), event.purpose.len()),
        (14_000, 20_000)
    );
}

#[test]
fn years_of_another_form_are_refused() {
    refused(
        &with("2026-03-14T09:26:53+02:00", "-000001-01-01T00:00:00Z"),
        Problem::Invalid,
        "AuditEvent.recorded",
    );
}

#[test]
fn no_damaged_event_panics() {
    let event = example("ex-auditBasicReadClient.json");
    for at in 0..event.len() {
        let mut damaged = event.clone();
        damaged[at] ^= 0x15;
        let _ = parse_audit_event(&damaged);
        let _ = parse_audit_event(&event[..at]);
    }
}
