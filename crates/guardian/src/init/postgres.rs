//! Preparing a PostgreSQL database: what capture needs, the slot, the trail,
//! and the rows of the snapshot that the slot exports.

use super::{
    Beginning, Begun, InitError, Plan, Progress, begin, check_identity, check_rules, is_new,
    no_tables,
};
use crate::Clock;
use crate::actors::Actors;
use crate::config::{Attribution, Keyless, ReplicaIdentity, Source, Tuning, is_wanted};
use crate::runtime::{Guardian, Parts};
use pitser_capture::postgres::install::{self, Found, Request, Wanted};
use pitser_capture::postgres::{Config, Connection, Moment, Name, PgError, PgSource, Place, slot};
use pitser_capture::{Shape, Snapshot, Source as Database};
use pitser_evidence::line::Timestamp;
use pitser_trail::TrailError;

pub(super) fn plan(source: &Source, tuning: &Tuning) -> Result<Plan, InitError> {
    let place = place(source)?;
    let mut sql = Connection::open(&place.config)?;
    install::check(&mut sql, &place.slot)?;
    let wanted = wanted(source, &mut sql)?;
    check_rules(source, &shapes(&wanted))?;
    let slot_there = slot::exists(&mut sql, &place.slot)?;
    let new_trail = is_new(source, tuning);
    if new_trail && slot_there {
        return Err(InitError::StaleSlot(place.slot));
    }
    let planned = install::plan(&mut sql, &request(source, &place, &wanted))?;
    let mut plan = planned_for(source, planned, &wanted);
    if !slot_there {
        tell_slot(&mut plan, &place.slot, new_trail);
    }
    Ok(plan)
}

fn planned_for(source: &Source, planned: install::Plan, wanted: &[Wanted]) -> Plan {
    let mut notes = planned.notes;
    if source.application.roles.is_empty() && source.attribution == Attribution::Trigger {
        notes.push(
            "Any login can name a person (pitser.actor, or a column of the rows) and is believed: give the \
             application a role of its own and name it under [source.application] roles"
                .to_owned(),
        );
    }
    if source.attribution == Attribution::Off {
        notes.push(
            "attribution is off: lines do not say who acted, unless [source.actor] finds it in the rows, and changes \
             without an actor are no finding. Switching it on or off later is done by this command, and by starting \
             the guardian again, which writes it into the trail"
                .to_owned(),
        );
    }
    Plan {
        statements: planned.statements,
        notes,
        uncovered: planned.uncovered,
        tables: wanted.iter().map(|w| w.found.name.clone()).collect(),
        ..Plan::default()
    }
}

/// Says why nothing seems to happen.
fn wait(why: &PgError) {
    tracing::warn!("waiting: {why}");
}

/// What making the slot is, and what it means for a trail that was begun before.
fn tell_slot(plan: &mut Plan, slot: &Name, new_trail: bool) {
    plan.statements.push(slot::making(slot));
    if !new_trail {
        plan.notes.push(format!(
            "The trail goes on with a gap: its slot {slot} was gone, so nobody captured what was changed \
             until now. `pitser guard run` writes the gap into the trail (CAP-01), and its first scan \
             names the rows that differ"
        ));
    }
}

pub(super) fn install(
    source: &Source,
    tuning: &Tuning,
    clock: &Clock,
    progress: &mut dyn FnMut(Progress),
) -> Result<Plan, InitError> {
    let place = place(source)?;
    let mut sql = Connection::open(&place.config)?;
    install::check(&mut sql, &place.slot)?;
    let wanted = wanted(source, &mut sql)?;
    let shapes = shapes(&wanted);
    let patients = check_rules(source, &shapes)?;
    let new_trail = is_new(source, tuning);
    if new_trail && slot::exists(&mut sql, &place.slot)? {
        return Err(InitError::StaleSlot(place.slot));
    }
    let identity = PgSource::open(&place)?.identity()?;
    // Looked at before the database is touched: it may be another one's.
    let begun = match new_trail {
        true => None,
        false => Some(Begun::open(tuning.layout(source))?),
    };
    if let Some(begun) = &begun {
        check_identity(&identity, &begun.genesis, source)?;
    }
    let done = install::install(&mut sql, &request(source, &place, &wanted))?;
    let mut plan = planned_for(source, done, &wanted);
    plan.new_trail = new_trail;
    let mut replication = Connection::open_replication(&place.config)?;
    if let Some(begun) = begun {
        plan.genesis = Some(begun.hash.to_string());
        if begun.held.is_none() {
            // It makes a slot that is gone anew, and looks at new tables, by itself.
            let note =
                "A guardian is running on this trail: it takes up what was changed within a second";
            plan.notes.push(note.to_owned());
        } else if !slot::exists(&mut sql, &place.slot)? {
            slot::create_telling(&mut replication, &place.slot, wait)?;
            tell_slot(&mut plan, &place.slot, new_trail);
            // What the database has for us may be new like the slot.
            begun.forget_word();
        }
        return Ok(plan);
    }
    let created = slot::create_telling(&mut replication, &place.slot, wait)?;
    tell_slot(&mut plan, &place.slot, new_trail);
    let begun = (|| {
        let moment = Moment::exported(&place, &created)?;
        let beginning = Beginning {
            at: Timestamp::from_micros(clock()).map_err(TrailError::from)?,
            identity,
            position: moment.position(),
            uncovered: plan.uncovered.clone(),
        };
        let trail = begin(source, tuning, &shapes, &patients, beginning)?;
        Ok::<_, InitError>((moment, trail.genesis_hash().to_string()))
    })();
    let (mut moment, genesis) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            // Nobody would read it, and it would keep the server's log for ever.
            drop(replication);
            slot::drop(&mut sql, &place.slot)?;
            return Err(error);
        }
    };
    plan.genesis = Some(genesis);
    let parts = Parts {
        source: source.clone(),
        tuning: tuning.clone(),
        client: None,
        witnesses: Vec::new(),
        fleet: None,
        clock: clock.clone(),
    };
    let about = wanted.iter().map(|wanted| wanted.found.rows_estimate).sum();
    let about = Some(about).filter(|about| *about > 0);
    let mut counted = |rows| {
        plan.rows = rows;
        progress(Progress { rows, about });
    };
    Guardian::baseline(parts, &mut moment, &mut counted)
        .map_err(|error| InitError::Baseline(Box::new(error)))?;
    Ok(plan)
}

pub(super) fn uninstall(source: &Source, dry_run: bool) -> Result<Vec<String>, InitError> {
    let Place {
        config,
        publication,
        slot,
        ..
    } = place(source)?;
    let mut sql = Connection::open(&config)?;
    Ok(match dry_run {
        true => install::plan_removal(&mut sql, &slot, &publication)?,
        false => install::uninstall(&mut sql, &slot, &publication)?,
    })
}

pub(super) fn open_guarded(source: &Source) -> Result<Box<dyn Database>, InitError> {
    let mut database = PgSource::open(&place(source)?)?;
    if let Some(warning) = install::untested(database.sql())? {
        tracing::warn!(source = %source.name, "{warning}");
    }
    match database.shapes().is_empty() {
        true => Err(InitError::NotInitialised(source.name.clone())),
        false => Ok(Box::new(database)),
    }
}

fn place(source: &Source) -> Result<Place, InitError> {
    // Slots are named across the cluster, so that sources need names of their own.
    let usual = format!(
        "pitser_{}",
        source.name.to_ascii_lowercase().replace('-', "_")
    );
    let name = |given: &Option<String>| Name::new(given.as_ref().unwrap_or(&usual).as_str());
    Ok(Place {
        config: Config::parse_in(&source.url, &source.dir)?,
        publication: name(&source.publication)?,
        slot: name(&source.slot)?,
        attribution: is_attributed(source),
    })
}

/// The tables that the patterns name, and those that rules look at.
fn wanted(source: &Source, sql: &mut Connection) -> Result<Vec<Wanted>, InitError> {
    let all = install::tables(sql)?;
    let full = |found: &Found| {
        let keyless = found.key.is_empty() && source.keyless == Keyless::Full;
        // Without images there is nothing to fill in large values from.
        keyless || (!source.vault && found.toastable)
    };
    let mut wanted: Vec<Wanted> = all
        .iter()
        .filter(|found| is_wanted(source, &found.name))
        .map(|found| Wanted {
            found: found.clone(),
            columns: None,
            full: full(found),
        })
        .collect();
    if wanted.is_empty() {
        return Err(no_tables(
            source,
            all.iter().map(|found| found.name.as_str()),
        ));
    }
    for needed in Actors::needed(source) {
        let known = all.iter().find(|found| found.name == needed.table);
        let found = known.ok_or_else(|| InitError::NoSuchTable {
            name: source.name.clone(),
            table: needed.table.clone(),
        })?;
        match wanted.iter_mut().find(|w| w.found.name == found.name) {
            Some(Wanted { columns: None, .. }) => {}
            Some(Wanted {
                columns: Some(columns),
                ..
            }) => columns.extend(needed.column),
            None => {
                let mut columns = found.key.clone();
                columns.extend(needed.column);
                columns.extend(Actors::columns(source, &shape(found)));
                wanted.push(Wanted {
                    found: found.clone(),
                    columns: Some(columns),
                    full: false,
                });
            }
        }
    }
    for Wanted { found, columns, .. } in &mut wanted {
        if let Some(columns) = columns {
            let listed = std::mem::take(columns);
            *columns = found.columns.clone();
            columns.retain(|column| listed.contains(column));
        }
    }
    wanted.sort_by(|one, other| one.found.name.cmp(&other.found.name));
    Ok(wanted)
}

fn request<'a>(source: &Source, place: &'a Place, tables: &'a [Wanted]) -> Request<'a> {
    Request {
        publication: &place.publication,
        slot: &place.slot,
        tables,
        full: source.replica_identity == ReplicaIdentity::Full,
        attribution: is_attributed(source),
    }
}

fn is_attributed(source: &Source) -> bool {
    source.attribution == Attribution::Trigger
}

fn shapes(wanted: &[Wanted]) -> Vec<Shape> {
    let of = |wanted: &Wanted| {
        let mut shape = shape(&wanted.found);
        if let Some(columns) = &wanted.columns {
            shape.columns.clone_from(columns);
        }
        if shape.key.is_empty() {
            shape.key.clone_from(&shape.columns);
            shape.keyless = true;
        }
        shape
    };
    wanted.iter().map(of).collect()
}

fn shape(found: &Found) -> Shape {
    Shape {
        name: found.name.clone(),
        columns: found.columns.clone(),
        numbers: Vec::new(),
        key: found.key.clone(),
        keyless: false,
    }
}
