//! IHE Basic Audit Log Patterns, common part: where an event breaks them.

use super::json::Node;
use super::{Claim, Entities, FhirError, code};

/// Code of the agent that is the client: data flow to it when reading, from it
/// when writing and searching; the application when deleting.
fn client_code(claim: Claim) -> Option<&'static str> {
    match claim {
        Claim::Read => Some(DESTINATION),
        Claim::Create | Claim::Update | Claim::Query => Some(SOURCE),
        Claim::Delete => Some(APPLICATION),
        Claim::Other => None,
    }
}

fn server_code(claim: Claim) -> Option<&'static str> {
    match claim {
        Claim::Read => Some(SOURCE),
        Claim::Create | Claim::Update | Claim::Query => Some(DESTINATION),
        Claim::Delete => Some(CUSTODIAN),
        Claim::Other => None,
    }
}

const APPLICATION: &str = "110150";
const DESTINATION: &str = "110152";
const SOURCE: &str = "110153";
const CUSTODIAN: &str = "custodian";

/// The agent that is the client application, if the event tells it apart.
pub(super) fn client(claim: Claim, event: Node<'_>) -> Result<Option<Node<'_>>, FhirError> {
    let Some(wanted) = client_code(claim) else {
        return Ok(None);
    };
    Ok(of_type(event, wanted)?.into_iter().next())
}

/// The agents with this code, each as often as it has it.
fn of_type<'a>(event: Node<'a>, wanted: &str) -> Result<Vec<Node<'a>>, FhirError> {
    let mut found = Vec::new();
    for agent in event.list("agent")? {
        let Some(kind) = agent.get("type") else {
            continue;
        };
        for coding in kind.list("coding")? {
            if coding.text("code")? == Some(wanted) {
                found.push(agent);
            }
        }
    }
    Ok(found)
}

/// Each violation as `element: reason`, without values.
pub(super) fn violations(
    event: Node<'_>,
    claim: Claim,
    entities: &Entities,
) -> Result<Vec<String>, FhirError> {
    let mut found: Vec<String> = Vec::new();
    let mut check = |holds: bool, element: &str, reason: &str| {
        let violation = format!("{element}: {reason}");
        if !holds && !found.contains(&violation) {
            found.push(violation);
        }
    };
    check(
        event.get("resourceType").is_some(),
        "resourceType",
        "is missing",
    );
    check(
        code(event, "type")? == Some("rest"),
        "type",
        "is not audit-event-type#rest",
    );
    check(
        event.list("subtype")?.next().is_some(),
        "subtype",
        "names no REST interaction",
    );
    check(event.get("action").is_some(), "action", "is missing");
    check(event.get("outcome").is_some(), "outcome", "is missing");
    check(
        claim != Claim::Other,
        "action",
        "is no REST interaction on records",
    );

    for (name, wanted) in [
        ("client", client_code(claim)),
        ("server", server_code(claim)),
    ] {
        let Some(wanted) = wanted else { continue };
        let agents = of_type(event, wanted)?;
        check(
            agents.len() == 1,
            &format!("agent[{name}]"),
            "must be there exactly once",
        );
        for agent in agents {
            check(
                agent.get("who").is_some(),
                &format!("agent[{name}].who"),
                "is missing",
            );
            check(
                agent.get("network").is_some(),
                &format!("agent[{name}].network"),
                "is missing",
            );
        }
    }
    let mut users = Vec::new();
    for agent in event.list("agent")? {
        if agent.required("requestor")?.boolean()? {
            users.push(agent);
        }
    }
    check(users.len() <= 1, "agent[user]", "is there more than once");
    check(
        users.iter().all(|user| user.get("who").is_some()),
        "agent[user].who",
        "is missing",
    );

    check(
        event.list("entity")?.next().is_some(),
        "entity",
        "is missing",
    );
    check(
        claim != Claim::Query || entities.has_query,
        "entity[query].query",
        "is missing",
    );
    for entity in event.list("entity")? {
        let both = entity.get("name").is_some() && entity.get("query").is_some();
        check(!both, "entity", "has both a name and a query");
    }
    let for_patient = says_patient_profile(event)?;
    let names_patient = !entities.patients.is_empty();
    check(
        !for_patient || names_patient,
        "entity[patient]",
        "is missing, though the profile promises it",
    );
    check(
        !entities.patient_unknown,
        "entity[patient].what",
        "names the patient in no usable way",
    );
    Ok(found)
}

/// Whether `meta.profile` names one of the `Patient*` profiles.
fn says_patient_profile(event: Node<'_>) -> Result<bool, FhirError> {
    let Some(meta) = event.get("meta") else {
        return Ok(false);
    };
    for profile in meta.list("profile")? {
        if profile.as_text()?.contains("IHE.BasicAudit.Patient") {
            return Ok(true);
        }
    }
    Ok(false)
}
