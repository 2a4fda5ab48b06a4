//! Audit events that applications send: FHIR R4 `AuditEvent`, and the IHE
//! profile for it (BALP).
//!
//! The bytes as they came are what is hashed and kept; what is extracted here
//! says which trail lines they become. An event is the sender's claim: that
//! the record was read, or changed, is not thereby true. Events that break the
//! profile are accepted and their violations listed, since a log that refuses
//! what real systems send has holes; events that are no `AuditEvent` at all
//! are refused, with a path.
//!
//! In scope: parsing, extraction, profile violations. Elsewhere: the HTTP feed
//! (`web`), which lines an event becomes (`guardian`).

mod balp;
mod json;

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::event::Person;
use json::Node;

/// Largest event that is looked at, in bytes.
pub const MAX_EVENT: usize = 1 << 20;

/// Largest Bundle that is looked at, in bytes.
pub const MAX_BUNDLE: usize = 16 << 20;

/// Largest number of entries in a Bundle.
pub const MAX_ENTRIES: usize = 10_000;

/// Of a person, an application, an address or a purpose whose text is longer, in bytes, the
/// beginning is told: it stands in every line of the event.
pub const MAX_TEXT: usize = 500;

/// What an `AuditEvent` claims.
///
/// `Debug` shows no person, patient or resource id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditEvent {
    /// The sender's id for it.
    pub id: Option<String>,
    /// What was done.
    pub claim: Claim,
    /// When, in the sender's clock: RFC 3339, UTC, exactly six fractional digits.
    pub recorded: String,
    /// How it ended, if the sender says so.
    pub outcome: Option<Outcome>,
    /// Codes of the purpose, the event's before the requestor's (`TREAT`, `ETREAT`, ...).
    pub purpose: Vec<String>,
    /// The person who asked for it: an identifier's value, or else a reference, or a name.
    pub person: Option<Person>,
    /// The system of that person's identifier, if it is one.
    pub person_system: Option<String>,
    /// The application that asked for it.
    pub app: Option<String>,
    /// That application's network address, or the person's.
    pub client: Option<String>,
    /// The patients that it concerns, each once.
    pub patients: Vec<Patient>,
    /// It concerns a patient whom it does not name in any usable way.
    pub patient_unknown: bool,
    /// The other records that it concerns.
    pub data: Vec<Resource>,
    /// It holds the text of a query.
    pub has_query: bool,
    /// The `X-Request-Id` that client and server both report.
    pub request_id: Option<String>,
    /// Where it breaks the IHE profile: element and reason, no values.
    pub profile_violations: Vec<String>,
}

impl AuditEvent {
    /// Takes absolute references of these servers for references here, and all others for
    /// what they are: a patient or a record of another server with the same id as one of
    /// ours is somebody else's. If there are any, that is said among what is told of the
    /// event.
    pub fn seen_from(&mut self, ours: &[String]) {
        let is_ours = |base: &str| ours.iter().any(|ours| ours.trim_end_matches('/') == base);
        let mut are_foreign = false;
        for patient in &mut self.patients {
            if let Patient::Id { base, id } = patient
                && let Some(base) = base.take()
                && !is_ours(&base)
            {
                are_foreign = true;
                *patient = Patient::Urn(format!("{base}/Patient/{id}"));
            }
        }
        for record in &mut self.data {
            record.base = record.base.take().filter(|base| !is_ours(base));
            are_foreign |= record.base.is_some();
        }
        if are_foreign {
            self.profile_violations.push(
                "entity.what.reference: it is of a server that fhir_bases does not name, so that nobody here knows whose it is"
                    .to_owned(),
            );
        }
    }
}

/// What an event claims to have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A record was made.
    Create,
    /// Records were read by their id.
    Read,
    /// A record was changed.
    Update,
    /// A record was removed.
    Delete,
    /// Records were searched for: whatever was found was read too.
    Query,
    /// Anything else: an operation, a login, a start.
    Other,
}

/// How the event ended (FHIR `audit-event-outcome`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `0`
    Success,
    /// `4`
    MinorFailure,
    /// `8`
    SeriousFailure,
    /// `12`
    MajorFailure,
}

/// A patient as an event names them. `Debug` shows the form only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Patient {
    /// By the id of a `Patient` resource.
    Id {
        /// The FHIR server, if the reference was absolute.
        base: Option<String>,
        /// The resource's id.
        id: String,
    },
    /// By a URN (`urn:uuid:...`, `urn:oid:...`).
    Urn(String),
    /// By a business identifier, such as a personal code.
    Identifier {
        /// Who gives out the identifier.
        system: Option<String>,
        /// The identifier.
        value: String,
    },
}

impl fmt::Debug for Patient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Id { .. } => "Id(..)",
            Self::Urn(_) => "Urn(..)",
            Self::Identifier { .. } => "Identifier(..)",
        })
    }
}

/// A record as an event names it. `Debug` shows the type only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Resource {
    /// The FHIR server, if the reference was absolute.
    pub base: Option<String>,
    /// The resource type, such as `Observation`.
    pub kind: String,
    /// The resource's id.
    pub id: String,
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/..", self.kind)
    }
}

/// Why bytes are no audit event. Names an element, never its value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}{diagnostics}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct FhirError {
    /// The kind of fault.
    pub problem: Problem,
    /// FHIRPath of the element; empty for the whole.
    pub path: String,
    /// What is wrong, for the sender's engineers.
    pub diagnostics: String,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// More bytes than are looked at.
    TooLarge,
    /// More entries than are looked at.
    TooMany,
    /// Not JSON, or a key twice.
    Syntax,
    /// A required element is missing.
    Required,
    /// An element has a value that it cannot have.
    Invalid,
}

impl FhirError {
    fn new(problem: Problem, path: &str, diagnostics: String) -> Self {
        Self {
            problem,
            path: path.to_owned(),
            diagnostics,
        }
    }

    /// The code for `OperationOutcome.issue.code` (FHIR `issue-type`).
    pub fn issue_code(&self) -> &'static str {
        match self.problem {
            Problem::TooLarge => "too-long",
            Problem::TooMany => "too-costly",
            Problem::Syntax => "structure",
            Problem::Required => "required",
            Problem::Invalid => "value",
        }
    }

    /// The `OperationOutcome` that tells the sender.
    pub fn to_operation_outcome(&self) -> serde_json::Value {
        let mut issue = serde_json::json!({
            "severity": "error", "code": self.issue_code(), "diagnostics": self.diagnostics,
        });
        if !self.path.is_empty() {
            issue["expression"] = serde_json::json!([self.path]);
        }
        serde_json::json!({ "resourceType": "OperationOutcome", "issue": [issue] })
    }
}

/// Reads one event.
///
/// A missing `resourceType` is a profile violation, not an error: a server in
/// wide use writes its audit log so. Another resource type is an error.
///
/// # Errors
/// [`FhirError`] if the bytes are not an R4 `AuditEvent` with its required
/// elements, or more than [`MAX_EVENT`].
pub fn parse_audit_event(bytes: &[u8]) -> Result<AuditEvent, FhirError> {
    limit(bytes, MAX_EVENT)?;
    let json = json::parse(bytes)?;
    let event = Node::root(&json).object()?;
    if event
        .text("resourceType")?
        .is_some_and(|kind| kind != "AuditEvent")
    {
        return Err(FhirError::new(
            Problem::Invalid,
            "AuditEvent.resourceType",
            "an AuditEvent is expected".to_owned(),
        ));
    }
    required_elements(event)?;
    extract(event)
}

/// Takes a batch Bundle of events (ATNA FHIR feed) apart: of each entry the bytes of its
/// resource, exactly as they stand there, or why they are refused; other entries do not
/// suffer. Whether they are an event is not looked at.
///
/// # Errors
/// [`FhirError`] if the bytes are not a batch Bundle, or more than [`MAX_BUNDLE`], or it has
/// more than [`MAX_ENTRIES`].
pub fn parse_bundle(bytes: &[u8]) -> Result<Vec<Result<&[u8], FhirError>>, FhirError> {
    limit(bytes, MAX_BUNDLE)?;
    let bundle: Bundle<'_> = serde_json::from_slice(bytes).map_err(|error| json::syntax(&error))?;
    let wrong = |path: &str, why: &str| FhirError::new(Problem::Invalid, path, why.to_owned());
    if bundle.resource_type != "Bundle" {
        return Err(wrong("Bundle.resourceType", "a Bundle is expected"));
    }
    if bundle.kind != "batch" {
        return Err(wrong("Bundle.type", "a batch is expected"));
    }
    let Entries { first, count } = bundle.entry;
    if count > MAX_ENTRIES {
        return Err(FhirError::new(
            Problem::TooMany,
            "Bundle.entry",
            format!("{count} entries; at most {MAX_ENTRIES} are taken: send several Bundles"),
        ));
    }
    let entries = first.iter().enumerate();
    Ok(entries.map(|(at, entry)| entry.raw(at)).collect())
}

/// Whether the bytes say that they are a Bundle; for a feed that takes both.
pub fn is_bundle(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Typed<'a> {
        #[serde(rename = "resourceType", borrow)]
        resource_type: Cow<'a, str>,
    }
    bytes.len() <= MAX_BUNDLE
        && serde_json::from_slice::<Typed<'_>>(bytes)
            .is_ok_and(|typed| typed.resource_type == "Bundle")
}

#[derive(Deserialize)]
struct Bundle<'a> {
    #[serde(rename = "resourceType")]
    resource_type: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow, default)]
    entry: Entries<'a>,
}

/// Entries of a Bundle: no more are kept than are taken.
#[derive(Default)]
struct Entries<'a> {
    first: Vec<Entry<'a>>,
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut first = Vec::new();
        while first.len() < MAX_ENTRIES
            && let Some(entry) = entries.next_element()?
        {
            first.push(entry);
        }
        let mut count = first.len();
        while count >= MAX_ENTRIES && entries.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Entries { first, count })
    }
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    resource: Option<&'a RawValue>,
    #[serde(borrow)]
    request: Option<Request<'a>>,
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
}

impl<'a> Entry<'a> {
    /// The bytes of the resource of entry `at`.
    fn raw(&self, at: usize) -> Result<&'a [u8], FhirError> {
        let wrong = |problem, element: &str, why: &str| {
            let path = format!("Bundle.entry[{at}].{element}");
            FhirError::new(problem, &path, why.to_owned())
        };
        if let Some(request) = &self.request
            && request.method != "POST"
        {
            let why = "only POST is taken";
            return Err(wrong(Problem::Invalid, "request.method", why));
        }
        let missing = || wrong(Problem::Required, "resource", "this element is required");
        let resource = self.resource.ok_or_else(missing)?;
        Ok(resource.get().as_bytes())
    }
}

fn limit(bytes: &[u8], most: usize) -> Result<(), FhirError> {
    if bytes.len() <= most {
        return Ok(());
    }
    Err(FhirError::new(
        Problem::TooLarge,
        "",
        format!("{} bytes; at most {most} are taken", bytes.len()),
    ))
}

/// Elements without which it is no R4 `AuditEvent` (StructureDefinition, 1..).
fn required_elements(event: Node<'_>) -> Result<(), FhirError> {
    event.required("type")?.object()?;
    event.required("recorded")?;
    event.required("agent")?;
    if event.list("agent")?.next().is_none() {
        return Err(FhirError::new(
            Problem::Required,
            "AuditEvent.agent",
            "at least one is required".to_owned(),
        ));
    }
    for agent in event.list("agent")? {
        agent.object()?.required("requestor")?.boolean()?;
    }
    event
        .required("source")?
        .object()?
        .required("observer")?
        .object()?;
    Ok(())
}

fn extract(event: Node<'_>) -> Result<AuditEvent, FhirError> {
    let claim = claim(event)?;
    let requestor = requestor(event)?;
    let client = balp::client(claim, event)?;
    let entities = Entities::read(event)?;
    let (person_system, person) = requestor.map(identity).transpose()?.unwrap_or_default();
    let app = client.map(identity).transpose()?.and_then(|(_, name)| name);
    let address = address(client)?.or(address(requestor)?);
    let purpose = purpose(event, requestor)?;
    let mut profile_violations = balp::violations(event, claim, &entities)?;
    let texts = [&person, &app, &address, &purpose.first().cloned()];
    if texts.into_iter().flatten().any(|it| it.len() > MAX_TEXT) {
        profile_violations.push(format!(
            "agent: a text is longer than {MAX_TEXT} bytes, and the trail's lines have its beginning"
        ));
    }
    Ok(AuditEvent {
        id: event.text("id")?.map(str::to_owned),
        claim,
        recorded: recorded(event)?,
        outcome: outcome(event)?,
        purpose: purpose.into_iter().map(brief).collect(),
        person: person.map(brief).map(Person::new),
        person_system,
        app: app.map(brief),
        client: address.map(brief),
        profile_violations,
        patients: entities.patients,
        patient_unknown: entities.patient_unknown,
        data: entities.data,
        has_query: entities.has_query,
        request_id: entities.request_id,
    })
}

/// A text, or of a long one the beginning.
fn brief(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

/// `action` where it is telling; for `E` and without it, the REST interaction.
fn claim(event: Node<'_>) -> Result<Claim, FhirError> {
    let action = event.text("action")?;
    match action {
        Some("C") => return Ok(Claim::Create),
        Some("R") => return Ok(Claim::Read),
        Some("U") => return Ok(Claim::Update),
        Some("D") => return Ok(Claim::Delete),
        Some("E") | None => {}
        Some(_) => {
            return Err(event
                .required("action")?
                .invalid("one of C, R, U, D, E is expected"));
        }
    }
    let mut claim = Claim::Other;
    for subtype in event.list("subtype")? {
        claim = match subtype.text("code")?.unwrap_or_default() {
            "search" | "search-type" | "search-system" => Claim::Query,
            "read" | "vread" | "history" | "history-instance" => Claim::Read,
            "create" => Claim::Create,
            "update" | "patch" => Claim::Update,
            "delete" => Claim::Delete,
            _ => continue,
        };
    }
    Ok(claim)
}

fn recorded(event: Node<'_>) -> Result<String, FhirError> {
    let node = event.required("recorded")?;
    let instant: Option<Timestamp> = node.as_text()?.parse().ok();
    instant
        .map(|instant| instant.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
        // Years before 0 and after 9999 have another form.
        .filter(|at| crate::event::is_instant(at))
        .ok_or_else(|| node.invalid("an instant with seconds and time zone is expected"))
}

fn outcome(event: Node<'_>) -> Result<Option<Outcome>, FhirError> {
    Ok(Some(match event.text("outcome")? {
        None => return Ok(None),
        Some("0") => Outcome::Success,
        Some("4") => Outcome::MinorFailure,
        Some("8") => Outcome::SeriousFailure,
        Some("12") => Outcome::MajorFailure,
        Some(_) => {
            return Err(event
                .required("outcome")?
                .invalid("one of 0, 4, 8, 12 is expected"));
        }
    }))
}

fn purpose(event: Node<'_>, requestor: Option<Node<'_>>) -> Result<Vec<String>, FhirError> {
    let of_event = event.list("purposeOfEvent")?;
    let of_use = requestor.map(|requestor| requestor.list("purposeOfUse"));
    let of_use = of_use.transpose()?.into_iter().flatten();
    let mut codes = Vec::new();
    let mut seen = HashSet::new();
    for concept in of_event.chain(of_use) {
        for coding in concept.list("coding")? {
            let code = coding.text("code")?.filter(|code| seen.insert(*code));
            codes.extend(code.map(str::to_owned));
        }
    }
    Ok(codes)
}

/// The agent who asked: the first that says so, one that is named before one
/// that is not.
fn requestor(event: Node<'_>) -> Result<Option<Node<'_>>, FhirError> {
    let mut first = None;
    for agent in event.list("agent")? {
        if !agent.required("requestor")?.boolean()? {
            continue;
        }
        if identity(agent)?.1.is_some() {
            return Ok(Some(agent));
        }
        first.get_or_insert(agent);
    }
    Ok(first)
}

/// Identifier system and name of an agent: identifier, reference, name, display.
fn identity(agent: Node<'_>) -> Result<(Option<String>, Option<String>), FhirError> {
    let own = |text: Option<&str>| text.map(str::to_owned);
    let who = agent.get("who").map(Node::object).transpose()?;
    if let Some(who) = who {
        if let Some(identifier) = who.get("identifier")
            && let Some(value) = identifier.text("value")?
        {
            return Ok((own(identifier.text("system")?), own(Some(value))));
        }
        if let Some(reference) = who.text("reference")? {
            return Ok((None, own(Some(reference))));
        }
    }
    let display = who.map(|who| who.text("display")).transpose()?.flatten();
    Ok((
        None,
        own(agent.text("altId")?.or(agent.text("name")?).or(display)),
    ))
}

fn address(agent: Option<Node<'_>>) -> Result<Option<String>, FhirError> {
    let network = agent.and_then(|agent| agent.get("network"));
    Ok(network
        .map(|network| network.text("address"))
        .transpose()?
        .flatten()
        .map(str::to_owned))
}

/// What the entities of an event say.
#[derive(Default)]
struct Entities {
    /// Each once, of the thousands of a hostile event too.
    patients: Vec<Patient>,
    patient_unknown: bool,
    data: Vec<Resource>,
    has_query: bool,
    request_id: Option<String>,
}

impl Entities {
    fn read(event: Node<'_>) -> Result<Self, FhirError> {
        let mut entities = Self::default();
        for entity in event.list("entity")? {
            entities.take(entity.object()?)?;
        }
        let mut seen = HashSet::new();
        let is_new: Vec<bool> = entities.patients.iter().map(|it| seen.insert(it)).collect();
        let mut is_new = is_new.into_iter();
        entities.patients.retain(|_| is_new.next() == Some(true));
        Ok(entities)
    }

    fn take(&mut self, entity: Node<'_>) -> Result<(), FhirError> {
        self.has_query |= entity.text("query")?.is_some();
        let what = entity.get("what").map(Node::object).transpose()?;
        if code(entity, "type")? == Some("XrequestId") {
            let identifier = what.and_then(|what| what.get("identifier"));
            let value = identifier
                .map(|identifier| identifier.text("value"))
                .transpose()?
                .flatten();
            self.request_id = self.request_id.take().or(value.map(str::to_owned));
            return Ok(());
        }
        // `object-role` 1 is the patient.
        let is_patient = code(entity, "role")? == Some("1");
        let named = what.map(Named::read).transpose()?.unwrap_or_default();
        match named.subject(is_patient) {
            Subject::Patient(patient) => self.patients.push(patient),
            Subject::Nothing => {}
            Subject::UnknownPatient => self.patient_unknown = true,
            Subject::Data(resource) => self.data.push(resource),
        }
        Ok(())
    }
}

/// `Coding.code` of an element.
fn code<'a>(node: Node<'a>, name: &str) -> Result<Option<&'a str>, FhirError> {
    Ok(node
        .get(name)
        .map(|coding| coding.text("code"))
        .transpose()?
        .flatten())
}

/// A `Reference`, taken apart.
#[derive(Default)]
struct Named {
    resource: Option<Resource>,
    urn: Option<String>,
    identifier: Option<(Option<String>, String)>,
    says_patient: bool,
}

enum Subject {
    Patient(Patient),
    UnknownPatient,
    Data(Resource),
    Nothing,
}

impl Named {
    fn read(what: Node<'_>) -> Result<Self, FhirError> {
        let reference = what.text("reference")?;
        let mut identifier = None;
        if let Some(node) = what.get("identifier")
            && let Some(value) = node.text("value")?
        {
            identifier = Some((node.text("system")?.map(str::to_owned), value.to_owned()));
        }
        // A search for one too: `Patient?identifier=…`.
        let leads_to_patient =
            reference.is_some_and(|text| text.split(['/', '?']).any(|part| part == "Patient"));
        Ok(Self {
            resource: reference.and_then(Resource::parse),
            urn: reference
                .filter(|text| text.starts_with("urn:"))
                .map(str::to_owned),
            identifier,
            says_patient: leads_to_patient || what.text("type")? == Some("Patient"),
        })
    }

    fn subject(self, is_patient: bool) -> Subject {
        let refers_to_patient = self
            .resource
            .as_ref()
            .is_some_and(|resource| resource.kind == "Patient");
        let is_patient = is_patient || self.says_patient || refers_to_patient;
        match (self.resource, self.urn, self.identifier) {
            (Some(resource), _, _) if refers_to_patient => Subject::Patient(Patient::Id {
                base: resource.base,
                id: resource.id,
            }),
            (_, _, Some((system, value))) if is_patient => {
                Subject::Patient(Patient::Identifier { system, value })
            }
            (_, Some(urn), _) if is_patient => Subject::Patient(Patient::Urn(urn)),
            _ if is_patient => Subject::UnknownPatient,
            (Some(resource), _, _) => Subject::Data(resource),
            _ => Subject::Nothing,
        }
    }
}

impl Resource {
    /// `[base/]Type/id[/_history/version]`; `None` for anything else.
    fn parse(reference: &str) -> Option<Self> {
        let reference = reference
            .split_once("/_history/")
            .map_or(reference, |(resource, _)| resource);
        let (rest, id) = reference.rsplit_once('/')?;
        let (base, kind) = rest
            .rsplit_once('/')
            .map_or((None, rest), |(base, kind)| (Some(base), kind));
        let is_kind = kind.len() <= MAX_KIND
            && kind.starts_with(|c: char| c.is_ascii_uppercase())
            && kind.bytes().all(|b| b.is_ascii_alphabetic());
        let is_id = (1..=64).contains(&id.len())
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
        let is_base =
            base.is_none_or(|base| base.starts_with("https://") || base.starts_with("http://"));
        (is_kind && is_id && is_base).then(|| Self {
            base: base.map(str::to_owned),
            kind: kind.to_owned(),
            id: id.to_owned(),
        })
    }
}

/// Longest name of a resource type, in bytes: FHIR's own have less than half as many.
const MAX_KIND: usize = 64;

#[cfg(test)]
mod tests;
