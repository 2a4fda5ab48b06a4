//! A node of the authority as a process: this test program, started again.

use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use pitser_authority::cluster::ClusterConfig;
use pitser_authority::{Authority, Clock, Config, Micros, User};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::machines::{GENESIS, SPEED, now_ns, s3_options};

/// A clock that is fast, and wrong by as much as it is told.
struct Fast {
    began_ns: u64,
    ahead_us: i64,
}

impl Clock for Fast {
    fn now(&self) -> Micros {
        let passed_us = now_ns().saturating_sub(self.began_ns) / 1000 * SPEED;
        let now = Micros::boundary(GENESIS).0 + passed_us;
        Micros(now.saturating_add_signed(self.ahead_us))
    }

    fn wait_until(&self, at: Micros) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let wait = at.since(self.now()) / SPEED as u32;
        Box::pin(tokio::time::sleep(wait + Duration::from_millis(1)))
    }
}

/// Writes down what the library says about its seconds.
struct Historian(Mutex<File>);

impl<S: tracing::Subscriber> Layer<S> for Historian {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "pitser_authority::history" {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, at, root } = fields;
        let mut file = self.0.lock().unwrap();
        // One call: the process may be killed at any moment.
        let line = format!("{} {message} {at} {root}\n", now_ns());
        file.write_all(line.as_bytes()).unwrap();
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    at: u64,
    root: String,
}

impl tracing::field::Visit for Fields {
    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        if field.name() == "at" {
            self.at = value;
        }
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "root" => self.root = format!("{value:?}"),
            _ => {}
        }
    }
}

/// Not a test: what [`crate::machines::World::start_node`] starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of the other tests"]
async fn node_process() {
    let Ok(name) = std::env::var("NODE_NAME") else {
        return println!("started by hand: nothing to do");
    };
    let get = |key: &str| std::env::var(key).unwrap();
    let history = Historian(Mutex::new(File::create(get("NODE_HISTORY")).unwrap()));
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false);
    tracing_subscriber::registry()
        .with(history)
        .with(log.with_filter(tracing_subscriber::EnvFilter::new(
            "info,pitser_authority::cluster=debug",
        )))
        .init();

    let endpoints = get("NODE_ETCD").split(',').map(str::to_owned).collect();
    let mut config = Config::new(get("NODE_FOLDER")).with_user(User::new("anon", "anon"));
    config.tcp = get("NODE_TCP").parse().unwrap();
    config.http = Some(get("NODE_HTTP").parse().unwrap());
    config.operations.admin = Some(get("NODE_ADMIN").into());
    config.publish_every_s = 20;
    config.max_clock_jump = Duration::from_secs(120);
    config.machine_id = name.clone();
    let mut cluster = ClusterConfig::new(name, endpoints, get("NODE_STORE"));
    cluster.s3 = s3_options(std::env::var("NODE_S3").ok());
    cluster.keep_s = get("NODE_KEEP_S").parse().unwrap();
    config.cluster = Some(cluster);
    let clock = Fast {
        began_ns: get("NODE_BEGAN_NS").parse().unwrap(),
        ahead_us: get("NODE_AHEAD_MS").parse::<i64>().unwrap() * 1000,
    };
    let authority = Authority::start(config, clock).await.unwrap();
    println!("READY");
    // The other end is closed to stop this node.
    let closed = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
    let _ = closed.await;
    if let Err(e) = authority.shutdown().await {
        eprintln!("STOPPED {e}");
    }
}
