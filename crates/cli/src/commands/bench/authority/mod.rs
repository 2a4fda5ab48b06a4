//! How many signatures a second an authority makes, how soon, and what they cost.
//!
//! The authority runs in a process of its own; this process is the load, over TCP
//! on loopback, each request with one imprint and a MAC. Requests are sent when
//! they are due, whether or not earlier ones were answered, and latency counts from
//! when a request was due. One answer in a hundred is verified meanwhile by the
//! authority's certificate; all of one round are verified afterwards. Witnesses are
//! processes as well, and cosign every second. The floor is the hashing that no server can do without: the MAC of the request and that of
//! the answer, and two nodes of the tree, one after another on one processor.

mod check;
mod load;
mod witnessed;

use std::hint::black_box;
use std::time::{Duration, Instant};

use pitser_ksi::hash::{Algorithm, HmacKey, Imprint, node};

use self::check::Checker;
use self::load::{Histogram, Load, Plan};
use self::witnessed::{Log, Witnesses};
use super::rounded;
use super::server::Authority;
use crate::clock;
use crate::files::Folder;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::Form;
use crate::tree::Map;
use crate::{service, witnesses};

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Signatures a second to ask for under full load
    #[arg(long, value_name = "N", default_value_t = 160_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Signatures a second to ask for when latency is measured
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    paced: u32,
    /// How long each of the two is kept up
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(3..=3600))]
    seconds: u32,
    /// TCP connections that share the requests
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Witnesses that cosign every second
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=20))]
    witnesses: u8,
    /// How many of them make a second witnessed [default: more than half]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    quorum: Option<u8>,
    #[command(flatten)]
    form: Form,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let folder = Folder::temporary()?;
    let floor = floor();
    let witnesses = Witnesses::start(&folder.path, args.witnesses)?;
    let quorum = witnesses::quorum(witnesses.len(), args.quorum.map(usize::from));
    let authority = Authority::start(&folder.path, &witnesses.options(quorum))?;
    witnesses.watch(&authority)?;
    let checker = service::block_on(Checker::new(&authority))?;
    let paced = measure(args, args.paced, &authority, &checker, quorum)?;
    let full = measure(args, args.rate, &authority, &checker, 0)?;
    let server_us = full.server.as_secs_f64() * 1e6 / full.load.answered as f64;
    let facts = Map::new()
        .with("signatures_per_s", full.load.rate() as u64)
        .with("asked_per_s", args.rate)
        .with("refused", full.load.refused + paced.load.refused)
        .with("later_than_1_s_after_the_round", full.load.late)
        .with("server_cpu_us", rounded(server_us))
        .with("floor_us", rounded(floor))
        .with("of_floor", rounded(server_us / floor))
        .with("latency_ms", latency(&paced.load))
        .with("latency_full_load_ms", latency(&full.load))
        .maybe(
            "witnessed_ms",
            (quorum > 0).then(|| quantiles(&paced.witnessed)),
        )
        .with("witnesses", format!("{quorum} of {}", args.witnesses))
        .with("rss_mb", authority.server().peak_memory()? / 1_000_000)
        .with("verified", full.load.sampled + paced.load.sampled)
        .with("verified_round", full.round)
        .with("connections", args.connections);
    args.form.show(&facts)?;
    Ok(Exit::Intact)
}

/// One load, what the server spent on it, and how many answers its verified round has.
struct Measured {
    load: Load,
    server: Duration,
    round: u64,
    /// Until the second of a signature had its quorum.
    witnessed: Histogram,
}

fn measure(
    args: &Args,
    rate: u32,
    authority: &Authority,
    checker: &Checker,
    quorum: usize,
) -> Result<Measured, Failure> {
    let plan = Plan {
        address: authority.text("tcp").to_owned(),
        connections: args.connections,
        rate,
        requests: u64::from(rate) * u64::from(args.seconds),
        // In the middle, when everything is warm.
        kept_second: clock::now().plus(u64::from(args.seconds) / 2),
        keeps_times: quorum > 0,
    };
    let before = authority.server().cpu()?;
    let (load, witnessed) = service::block_on(async {
        let log = Log::of(authority, quorum)?;
        let watching = tokio::spawn(log.watch(args.seconds));
        let load = load::run(&plan, checker).await?;
        let cosigned = watching.await.map_err(Failure::service)??;
        let witnessed = cosigned.latency(&load.times)?;
        Ok::<_, Failure>((load, witnessed))
    })?;
    let server = authority.server().cpu()?.saturating_sub(before);
    let told = authority.signed_in(plan.kept_second);
    let round = checker.check_round(&load.kept, told)?;
    Ok(Measured {
        load,
        server,
        round,
        witnessed,
    })
}

fn latency(load: &Load) -> Map {
    quantiles(&load.latency)
}

fn quantiles(durations: &Histogram) -> Map {
    Map::new()
        .with("p50", durations.quantile_ms(0.5))
        .with("p99", durations.quantile_ms(0.99))
        .with("max", durations.quantile_ms(1.0))
}

/// Microseconds a request that hashing alone takes.
fn floor() -> f64 {
    let algorithm = Algorithm::Sha256;
    let key = HmacKey::new(b"anon");
    let (request, answer) = ([7; load::REQUEST], [7; load::ANSWER]);
    let once = || {
        let start = Instant::now();
        for _ in 0..FLOOR {
            black_box(key.mac(algorithm, &[black_box(&request)]));
            let code = key.mac(algorithm, &[black_box(&answer)]);
            let below = node(algorithm, &request[..50], code.as_bytes(), 1);
            let above = Imprint::as_bytes(&below);
            black_box(node(algorithm, above, above, 2));
        }
        start.elapsed().as_secs_f64() * 1e6 / FLOOR as f64
    };
    (0..5).map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// Requests that the floor is taken over.
const FLOOR: u32 = 50_000;
