//! `pitser authority status`, and how one that runs is asked: by HTTP on its admin
//! socket.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::config::Place;
use crate::outcome::{Exit, Failure, Outcome};
use crate::output::{self, Form, plural, print, print_json};
use crate::service;

/// Arguments of `pitser authority status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    #[command(flatten)]
    place: Place,
    /// Ask at this monitor address, whatever the configuration says
    #[arg(long, value_name = "ADDRESS")]
    monitor: Option<SocketAddr>,
    #[command(flatten)]
    form: Form,
}

/// Runs `status`.
pub(super) fn status(args: &Status) -> Outcome {
    let (_, status) = shown(&args.place, args.monitor, "/status")?;
    if args.form.json {
        print_json(&status)?;
    } else {
        print(&output::clean(&text(&status)))?;
    }
    Ok(match (&status["healthy"], &status["ready"]) {
        (Value::Bool(true), Value::Bool(true)) => Exit::Intact,
        (Value::Bool(true), _) => Exit::Unconfirmed,
        _ => Exit::Broken,
    })
}

/// What a running authority shows at `path`, with the status of the answer.
pub(super) fn shown(
    place: &Place,
    monitor: Option<SocketAddr>,
    path: &str,
) -> Result<(u16, Value), Failure> {
    let (at, answer) = match monitor {
        Some(address) => {
            let asked = service::ask(async { Ok(get_over_tcp(address, path).await) });
            (format!("http://{address}"), asked?)
        }
        None => {
            let socket = place.read()?.admin();
            let asked = service::ask(async { Ok(get_on(&socket, path).await) });
            (socket.display().to_string(), asked?)
        }
    };
    answer.map_err(|e| {
        let advice = match e.kind() {
            ErrorKind::PermissionDenied => {
                "Only the service's user and root may ask there; --monitor ADDRESS asks elsewhere"
            }
            _ => "`pitser authority run` starts one",
        };
        Failure::Service(format!("no authority answers at {at}: {e}. {advice}"))
    })
}

fn text(status: &Value) -> String {
    let string = |value: &Value| value.as_str().unwrap_or("none yet").to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let state = match &status["trouble"] {
        Value::String(trouble) => trouble.clone(),
        _ => "signing".to_owned(),
    };
    let age = match status["head_age_s"].as_u64() {
        Some(age) => format!(", {age} s ago"),
        None => String::new(),
    };
    let clock = match status["clock_synchronised"].as_bool() {
        Some(true) => "follows a time source",
        Some(false) => "does not follow a time source",
        None => "nobody tells whether it follows a time source",
    };
    let fleet = &status["fleet"];
    let fleet = match fleet.is_object() {
        true => format!(
            "{}, {} silent, {} shrunk or forked, {} refused",
            plural(number(&fleet["registered"]), "trail"),
            number(&fleet["silent"]),
            number(&fleet["forked"]),
            number(&fleet["refused"]),
        ),
        false => "none below another service".to_owned(),
    };
    let published = match status["published"]["code"].as_str() {
        Some(code) => format!(
            "{}, newest {}\n           {code}",
            plural(number(&status["publications"]), "second"),
            string(&status["published"]["second"]),
        ),
        None => "nothing yet".to_owned(),
    };
    let due = match (status["due"]["since"].as_str(), &status["due"]["code"]) {
        (Some(since), code) => format!(
            "due        a publication since {since}; `pitser authority publish --due` says how\n           \
             {}\n",
            string(code)
        ),
        _ => String::new(),
    };
    let log = log_text(&status["log"]);
    let hook = match &status["hook"] {
        Value::Null => String::new(),
        hook => format!("hook       {}\n", hook_text(hook)),
    };
    format!(
        "state      {state}\n\
         head       {}{age}\n\
         genesis    {}\n\
         waiting    {}\n\
         signed     {} since the start, for {}\n\
         published  {published}\n\
         {due}\
         {hook}\
         {log}\
         clock      {clock}\n\
         fleet      {fleet}\n",
        string(&status["head"]),
        string(&status["genesis"]),
        plural(number(&status["waiting"]), "request"),
        number(&status["signatures"]),
        plural(number(&status["users"]), "user"),
    )
}

/// The calendar's log and its witnesses; nothing for an aggregator.
fn log_text(log: &Value) -> String {
    let (Some(size), Some(quorum)) = (log["size"].as_u64(), log["quorum"].as_u64()) else {
        return String::new();
    };
    let mut text = format!("log        {}", plural(size, "second"));
    if quorum > 0 {
        let (all, behind) = (log["witnesses"].as_array(), &log["behind_s"]);
        let all = all.map_or(0, Vec::len);
        text += &match log["witnessed"].as_u64() {
            Some(1..) => format!(", witnessed by {quorum} of {all} up to {behind} s ago"),
            _ => format!(", not witnessed by {quorum} of {all} yet"),
        };
    }
    text.push('\n');
    if let Some(trouble) = log["trouble"].as_str() {
        text += &format!("           {trouble}\n");
    }
    for witness in log["witnesses"].as_array().into_iter().flatten() {
        let name = witness["name"].as_str().unwrap_or_default();
        let state = match (witness["trouble"].as_str(), witness["cosigned"].as_str()) {
            (Some(trouble), _) => trouble.to_owned(),
            (None, Some(at)) => format!("cosigned at {at}"),
            (None, None) => "has not cosigned since the start".to_owned(),
        };
        text += &format!("           {name}: {state}\n");
    }
    text
}

fn hook_text(hook: &Value) -> String {
    let announced = match hook["announced"].as_str() {
        Some(second) => format!("told up to {second}"),
        None => "told of nothing yet".to_owned(),
    };
    match (hook["owed"].as_u64().unwrap_or(0), hook["trouble"].as_str()) {
        (0, _) => announced,
        (owed, None) => format!("{announced}, {} to come", plural(owed, "publication")),
        (owed, Some(trouble)) => format!(
            "{announced}, {} to come\n           {trouble}",
            plural(owed, "publication")
        ),
    }
}

/// Gives `body` to the authority at an admin socket.
pub(super) async fn post(socket: &Path, path: &str, body: Vec<u8>) -> io::Result<(u16, Value)> {
    let asked = async { ask(UnixStream::connect(socket).await?, Method::POST, path, body).await };
    within(asked).await
}

async fn get_on(socket: &Path, path: &str) -> io::Result<(u16, Value)> {
    let nothing = Vec::new();
    let asked = async {
        ask(
            UnixStream::connect(socket).await?,
            Method::GET,
            path,
            nothing,
        )
        .await
    };
    within(asked).await
}

async fn get_over_tcp(address: SocketAddr, path: &str) -> io::Result<(u16, Value)> {
    let nothing = Vec::new();
    let asked = async {
        ask(
            TcpStream::connect(address).await?,
            Method::GET,
            path,
            nothing,
        )
        .await
    };
    within(asked).await
}

async fn within<T>(asked: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

/// One request, and the JSON that it is answered with.
async fn ask<S>(stream: S, method: Method, path: &str, body: Vec<u8>) -> io::Result<(u16, Value)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "authority")
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(io::Error::other)?;
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), LONGEST).collect().await;
    let body = body.map_err(io::Error::other)?.to_bytes();
    let value = serde_json::from_slice(&body)
        .map_err(|_| io::Error::other("it answers something else than an authority would"))?;
    Ok((status, value))
}

/// A publication takes a signature and some writes to disk.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer, in bytes: a fleet of 65,536 trails.
const LONGEST: usize = 256 << 20;
