//! TLS, unix sockets and the options of a URL, with a real server.

#[path = "authority.rs"]
mod authority;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use authority::{Authority, Issued, Life, Signing};
use pitser_capture::postgres::{Config, Connection, PgError, Snapshot, Stream, slot};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use super::harness::Server;
use super::{changes, name, says, story};

const SETTINGS: [&str; 4] = [
    "ssl = on",
    "ssl_cert_file = '../server.crt'",
    "ssl_key_file = '../server.key'",
    "ssl_ca_file = '../clients.crt'",
];

const HERE: [&str; 2] = ["127.0.0.1", "localhost"];

/// The superuser, as a URL has it.
const ROOT: &str = "postgres:p%40ss%2Fw%3Ard%20%C3%B5";

/// A server with this certificate, that trusts the clients of this authority,
/// and beside it `root.crt`, the authority's certificate.
fn server(authority: &Authority, shown: &Issued, hba: &[&str]) -> Option<Server> {
    let files = [
        ("server.crt", &*shown.pem()),
        ("server.key", &shown.key_pem()),
        ("clients.crt", &authority.pem()),
        ("root.crt", &authority.pem()),
    ];
    Server::start_with(&SETTINGS, hba, &files)
}

fn ward(signing: Signing) -> Authority {
    Authority::new("Ward 7", signing)
}

/// What comes of connecting: `tls`, `clear`, or why not.
fn outcome(server: &Server, options: &str) -> &'static str {
    let config = server.config_with(ROOT, options);
    let error = match Connection::open(&config) {
        Ok(mut sql) => {
            let ours = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            return match sql.query(ours).unwrap()[0][0].as_deref() {
                Some(b"t") => "tls",
                _ => "clear",
            };
        }
        Err(error) => error,
    };
    assert!(!error.is_passing(), "{error}");
    let said = error.to_string();
    let told = |word| said.contains(word);
    match error {
        PgError::NoTls { .. } if told("ssl = on") && told("?sslmode=disable") => "none",
        PgError::Certificate { .. } if told("nobody that we trust") && told("sslrootcert=PATH") => {
            "issuer"
        }
        PgError::Certificate { .. } if told("subjectAltName") && told("sslmode=verify-ca") => {
            "name"
        }
        PgError::Certificate { .. } if told("expired") => "expired",
        PgError::Certificate { .. } if told("not valid yet") => "early",
        PgError::Certificate { .. } if told("version 3") => "version",
        PgError::Certificate { .. } if told("Ed25519") => "unbound",
        error => panic!("{options}: {error}"),
    }
}

/// Each way to ask, and what it comes to.
#[track_caller]
fn outcomes(server: &Server, expected: [&str; 7]) {
    let asked = [
        "",
        "sslmode=disable",
        "sslmode=require",
        "sslmode=require&sslrootcert=root.crt",
        "sslmode=verify-ca&sslrootcert=root.crt",
        "sslmode=verify-full&sslrootcert=root.crt",
        "sslrootcert=root.crt",
    ];
    let found = asked.map(|options| outcome(server, options));
    assert_eq!(found, expected);
}

#[test]
fn every_mode_with_servers_good_and_bad() {
    let ours = ward(Signing::P256);
    let Some(server) = server(&ours, &ours.issue(&HERE, Life::Now), &[]) else {
        return;
    };
    let show = |shown: &Issued| {
        server.write("server.crt", &shown.pem());
        server.write("server.key", &shown.key_pem());
        server.restart();
    };
    outcomes(&server, ["tls", "clear", "tls", "tls", "tls", "tls", "tls"]);
    // Nobody in the world vouches for a test: that is found out, or that this
    // machine knows no authorities.
    let system = server.config_with(ROOT, "sslrootcert=system");
    says(Connection::open(&system), false, &["sslrootcert=PATH"]);

    show(&ours.issue(&["db.example", "127.0.0.2"], Life::Now));
    outcomes(
        &server,
        ["tls", "clear", "tls", "tls", "tls", "name", "name"],
    );
    show(&ours.issue(&HERE, Life::Past));
    outcomes(
        &server,
        [
            "tls", "clear", "tls", "expired", "expired", "expired", "expired",
        ],
    );
    show(&ours.issue(&HERE, Life::Future));
    outcomes(
        &server,
        ["tls", "clear", "tls", "early", "early", "early", "early"],
    );

    // Somebody else, of the same name even.
    show(&ward(Signing::P256).issue(&HERE, Life::Now));
    let unknown = [
        "tls", "clear", "tls", "issuer", "issuer", "issuer", "issuer",
    ];
    outcomes(&server, unknown);
    // Its own authority: unknown, until that is the one we trust.
    let own = Issued::self_signed(&HERE, Life::Now);
    show(&own);
    outcomes(&server, unknown);
    server.write("root.crt", &own.pem());
    outcomes(&server, ["tls", "clear", "tls", "tls", "tls", "tls", "tls"]);
    let own = Issued::self_signed(&["db.example"], Life::Past);
    show(&own);
    server.write("root.crt", &own.pem());
    outcomes(
        &server,
        [
            "tls", "clear", "tls", "expired", "expired", "expired", "expired",
        ],
    );

    // Passwords are bound by SHA-384 here, as the server finds too.
    let other = ward(Signing::P384);
    server.write("root.crt", &other.pem());
    show(&other.issue(&HERE, Life::Now));
    outcomes(&server, ["tls", "clear", "tls", "tls", "tls", "tls", "tls"]);
    // By nothing here, which is well if we know who it is.
    let other = ward(Signing::Ed25519);
    server.write("root.crt", &other.pem());
    show(&other.issue(&HERE, Life::Now));
    outcomes(
        &server,
        ["tls", "clear", "unbound", "tls", "tls", "tls", "tls"],
    );
    server.write("root.crt", &ours.pem());
    show(&ours.issue_version_1("127.0.0.1"));
    outcomes(
        &server,
        [
            "version", "clear", "version", "version", "version", "version", "version",
        ],
    );

    run(&server, "sslmode=disable", "ALTER SYSTEM SET ssl = off");
    server.restart();
    outcomes(
        &server,
        ["clear", "clear", "none", "none", "none", "none", "none"],
    );
}

/// Runs this as the superuser.
fn run(server: &Server, options: &str, sql: &str) {
    let config = server.config_with(ROOT, options);
    Connection::open_application(&config)
        .unwrap()
        .query(sql)
        .unwrap();
}

#[test]
fn a_certificate_instead_of_a_password() {
    let (ours, theirs) = (ward(Signing::P256), ward(Signing::P256));
    let hba = ["hostssl all clerk 127.0.0.1/32 cert"];
    let Some(server) = server(&ours, &ours.issue(&HERE, Life::Now), &hba) else {
        return;
    };
    run(&server, "", "CREATE ROLE clerk LOGIN");
    let clerk = ours.issue(&["clerk"], Life::Now);
    let others = [
        ("porter", ours.issue(&["porter"], Life::Now)),
        ("forged", theirs.issue(&["clerk"], Life::Now)),
        ("past", ours.issue(&["clerk"], Life::Past)),
    ];
    for (name, issued) in others.iter().chain(&[("clerk", clerk)]) {
        server.write(&format!("{name}.crt"), &issued.pem());
        server.write(&format!("{name}.key"), &issued.key_pem());
    }
    let open = |options: &str| {
        let options = format!("sslrootcert=root.crt{options}");
        Connection::open(&server.config_with("clerk", &options))
    };
    let mut sql = open("&sslcert=clerk.crt&sslkey=clerk.key").unwrap();
    let shown = sql.query("SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
    assert_eq!(shown.unwrap()[0][0].as_deref(), Some(&b"/CN=clerk"[..]));

    says(open(""), false, &["pg_hba.conf", "certificate"]);
    says(
        open("&sslcert=porter.crt&sslkey=porter.key"),
        false,
        &["clerk"],
    );
    let refused = ["does not accept our certificate", "sslcert"];
    says(
        open("&sslcert=forged.crt&sslkey=forged.key"),
        false,
        &refused,
    );
    says(open("&sslcert=past.crt&sslkey=past.key"), false, &refused);

    // Our own files, before anything is sent.
    says(
        open("&sslcert=clerk.crt&sslkey=porter.key"),
        false,
        &["sslkey", "not the key"],
    );
    says(
        open("&sslcert=clerk.key&sslkey=clerk.key"),
        false,
        &["sslcert", "no certificate"],
    );
    says(
        open("&sslcert=clerk.crt&sslkey=clerk.crt"),
        false,
        &["sslkey", "no private key"],
    );
    says(
        open("&sslcert=none.crt&sslkey=clerk.key"),
        false,
        &["sslcert", "cannot be read"],
    );
    let open_to_all = fs::Permissions::from_mode(0o644);
    fs::set_permissions(server.dir().join("clerk.key"), open_to_all).unwrap();
    says(
        open("&sslcert=clerk.crt&sslkey=clerk.key"),
        false,
        &["sslkey", "chmod 600"],
    );
}

#[test]
fn a_server_that_takes_nothing_in_clear() {
    let ours = ward(Signing::P256);
    let hba = ["hostnossl all all 127.0.0.1/32 reject"];
    let Some(server) = server(&ours, &ours.issue(&HERE, Life::Now), &hba) else {
        return;
    };
    assert_eq!(outcome(&server, "sslmode=prefer"), "tls");
    let in_clear = server.config_with(ROOT, "sslmode=disable");
    says(Connection::open(&in_clear), false, &["pg_hba.conf"]);
}

/// What somebody in between does with the server's offer of mechanisms.
#[derive(Clone, Copy)]
enum Relay {
    Faithful,
    WithoutPlus,
}

/// Takes one client and hands its login on to the server, with TLS of its own
/// on both sides; the mechanism that the client took.
fn relay(
    server: &Server,
    authority: &Authority,
    shown: Issued,
    how: Relay,
) -> (u16, JoinHandle<Option<String>>) {
    let (authority, upstream) = (authority.pem(), server.port());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let client = listener.accept().unwrap().0;
        between(accepted(client, shown), opened(upstream, &authority), how)
    });
    (port, thread)
}

fn accepted(mut client: TcpStream, shown: Issued) -> impl Read + Write {
    client.read_exact(&mut [0; 8]).unwrap();
    client.write_all(b"S").unwrap();
    let key = PrivateKeyDer::try_from(shown.key).unwrap();
    let settings = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![shown.certificate.into()], key)
        .unwrap();
    StreamOwned::new(ServerConnection::new(Arc::new(settings)).unwrap(), client)
}

fn opened(port: u16, authority: &str) -> impl Read + Write {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
    server.write_all(b"\0\0\0\x08\x04\xD2\x16\x2F").unwrap();
    let mut answer = [0];
    server.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"S");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap())
        .unwrap();
    let settings = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let host = "127.0.0.1".try_into().unwrap();
    StreamOwned::new(
        ClientConnection::new(Arc::new(settings), host).unwrap(),
        server,
    )
}

fn between(
    mut client: impl Read + Write,
    mut server: impl Read + Write,
    how: Relay,
) -> Option<String> {
    let mut mechanism = None;
    let mut said = body(&mut client)?;
    loop {
        server.write_all(&said).unwrap();
        server.flush().unwrap();
        let mut answer = message(&mut server)?;
        let code = answer.get(5..9).map(<[u8]>::to_vec).unwrap_or_default();
        if let (Relay::WithoutPlus, b"R", [0, 0, 0, 10]) = (how, &answer[..1], &code[..]) {
            let body = b"\0\0\0\x0ASCRAM-SHA-256\0\0";
            let length = u32::try_from(4 + body.len()).unwrap();
            answer = [b"R", &length.to_be_bytes()[..], body].concat();
        }
        client.write_all(&answer).unwrap();
        client.flush().unwrap();
        said = message(&mut client)?;
        mechanism.get_or_insert_with(|| {
            let name = said[5..].split(|byte| *byte == 0).next().unwrap();
            String::from_utf8(name.to_vec()).unwrap()
        });
        // Once the server has proved itself or refused, there is no more to relay.
        if answer[0] == b'E' || code == [0, 0, 0, 12] {
            return mechanism;
        }
    }
}

/// `length:32 ‖ rest`, whole.
fn body(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
    from.read_exact(&mut rest).ok()?;
    Some([&length[..], &rest].concat())
}

/// `tag:1 ‖ length:32 ‖ rest`, whole.
fn message(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut tag = [0];
    from.read_exact(&mut tag).ok()?;
    Some([&tag[..], &body(from)?].concat())
}

#[test]
fn a_login_cannot_be_relayed_even_where_certificates_are_not_verified() {
    let ours = ward(Signing::P256);
    let Some(server) = server(&ours, &ours.issue(&HERE, Life::Now), &[]) else {
        return;
    };
    let forged = || Issued::self_signed(&HERE, Life::Now);
    let through = |shown: Issued, how: Relay, options: &str| {
        let (port, relay) = relay(&server, &ours, shown, how);
        let url = format!("postgres://{ROOT}@127.0.0.1:{port}/postgres?{options}");
        let outcome = Connection::open(&Config::parse_in(&url, server.dir()).unwrap());
        (outcome.unwrap_err(), relay.join().unwrap())
    };
    for options in ["", "sslmode=require"] {
        let (error, mechanism) = through(forged(), Relay::Faithful, options);
        assert!(matches!(error, PgError::Intercepted { .. }), "{error}");
        assert_eq!(mechanism.as_deref(), Some("SCRAM-SHA-256-PLUS"));
    }
    let (error, mechanism) = through(forged(), Relay::WithoutPlus, "");
    assert!(matches!(error, PgError::Intercepted { .. }), "{error}");
    assert_eq!(mechanism.as_deref(), Some("SCRAM-SHA-256"));
    // A server that is spoken to in clear would believe whoever took the offer out.
    let (error, mechanism) = through(forged(), Relay::WithoutPlus, "sslmode=require");
    assert!(matches!(error, PgError::Certificate { .. }), "{error}");
    assert_eq!(mechanism, None);
    // A certificate that gives no hash is no way around.
    let unbound = || ward(Signing::Ed25519).issue(&HERE, Life::Now);
    let (error, mechanism) = through(unbound(), Relay::Faithful, "sslmode=require");
    assert!(matches!(error, PgError::Certificate { .. }), "{error}");
    assert_eq!(mechanism, None);
    let (error, mechanism) = through(unbound(), Relay::WithoutPlus, "sslmode=require");
    assert!(matches!(error, PgError::Certificate { .. }), "{error}");
    assert_eq!(mechanism, None);
    // Where they are verified, nobody gets as far as that.
    let (error, mechanism) = through(forged(), Relay::Faithful, "sslrootcert=root.crt");
    assert!(matches!(error, PgError::Certificate { .. }), "{error}");
    assert_eq!(mechanism, None);
    // A wrong password is still told from somebody in between.
    let wrong = server.config_with("postgres:hunter", "sslmode=require");
    says(Connection::open(&wrong), false, &["refused the password"]);
}

#[test]
fn unix_sockets_and_password_files() {
    let me = Command::new("id").arg("-un").output().unwrap().stdout;
    let me = String::from_utf8(me).unwrap().trim().to_owned();
    let peer = format!("local all \"{me}\" peer");
    let hba = [&peer, "local all porter trust"];
    let Some(server) = Server::start(&[], &hba) else {
        return;
    };
    let mut sql = server.sql();
    sql.query(&format!(
        "CREATE ROLE \"{me}\" LOGIN; CREATE ROLE porter LOGIN;
         CREATE ROLE clerk LOGIN PASSWORD 'hun:ter\\';"
    ))
    .unwrap();
    let (directory, port) = (server.dir().display().to_string(), server.port());
    let open = |url: &str| {
        let config = Config::parse_in(url, server.dir()).unwrap();
        let mut sql = Connection::open(&config)?;
        let rows = sql.query("SELECT current_user, inet_client_addr()")?;
        let text = |field: &Option<bytes::Bytes>| {
            field
                .as_ref()
                .map(|text| String::from_utf8(text.to_vec()).unwrap())
        };
        Ok::<_, PgError>((text(&rows[0][0]).unwrap(), text(&rows[0][1])))
    };
    let by_socket = |who: &str, options: &str| {
        open(&format!(
            "postgres://{who}@:{port}/postgres?host={directory}{options}"
        ))
    };
    assert_eq!(by_socket(&me, "").unwrap(), (me.clone(), None));
    assert_eq!(
        by_socket("porter", "&sslmode=prefer").unwrap(),
        ("porter".to_owned(), None)
    );
    let escaped = directory.replace('/', "%2F");
    let in_place = format!("postgres://porter@{escaped}:{port}/postgres");
    assert_eq!(open(&in_place).unwrap(), ("porter".to_owned(), None));
    says(
        by_socket("clerk", ""),
        false,
        &["wants a password", "clerk"],
    );

    server.write(
        "passfile",
        &format!(
            "# ours\n127.0.0.1:{port}:postgres:clerk:hun\\:ter\\\\\n\
             {directory}:*:*:clerk:hun\\:ter\\\\\n"
        ),
    );
    let clerk = |where_: Option<String>| ("clerk".to_owned(), where_);
    let here = Some("127.0.0.1".to_owned());
    let by_tcp = format!("postgres://clerk@127.0.0.1:{port}/postgres?passfile=passfile");
    assert_eq!(open(&by_tcp).unwrap(), clerk(here));
    assert_eq!(
        by_socket("clerk", "&passfile=passfile").unwrap(),
        clerk(None)
    );
    let other = format!("postgres://postgres@127.0.0.1:{port}/postgres?passfile=passfile");
    says(open(&other), false, &["passfile", "no line"]);
    let readable = fs::Permissions::from_mode(0o640);
    fs::set_permissions(server.dir().join("passfile"), readable).unwrap();
    says(open(&by_tcp), false, &["passfile", "chmod 600"]);

    let nowhere = open("postgres://porter@/postgres?host=/nonexistent");
    says(nowhere, true, &["/nonexistent", "is it running"]);
}

#[test]
fn snapshot_and_stream_under_tls() {
    let ours = ward(Signing::P256);
    let Some(server) = server(&ours, &ours.issue(&HERE, Life::Now), &[]) else {
        return;
    };
    let config = server.config_with(ROOT, "sslmode=verify-full&sslrootcert=root.crt");
    let mut sql = Connection::open_application(&config).unwrap();
    sql.query(
        "CREATE TABLE visit(id int PRIMARY KEY, note text);
         INSERT INTO visit VALUES (1, 'before')",
    )
    .unwrap();
    super::publish(&mut sql, &["visit"]);
    let mut replication = Connection::open_replication(&config).unwrap();
    let made = slot::create(&mut replication, &name()).unwrap();

    let mut snapshot = Snapshot::open_exported(&config, made.snapshot()).unwrap();
    let table = snapshot.tables(&name()).unwrap().remove(0);
    let mut rows = 0;
    snapshot
        .scan(&table, 10, |chunk| {
            rows += chunk.len();
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(rows, 1);

    let start = super::boundary(made.consistent_point());
    let mut stream = Stream::start(replication, &name(), &name(), start).unwrap();
    let streams = "SELECT s.ssl FROM pg_stat_replication r JOIN pg_stat_ssl s USING (pid)";
    let protected = sql.query(streams).unwrap();
    assert_eq!(protected[0][0].as_deref(), Some(&b"t"[..]));
    sql.query("INSERT INTO visit VALUES (2, 'now')").unwrap();
    let found = changes(&mut stream, 1);
    assert_eq!(story(&found), ["Create 2 - -> 2,now"]);
    // Many records of TLS, and messages longer than one.
    sql.query("INSERT INTO visit SELECT n, repeat('x', n * 100) FROM generate_series(3, 1000) n")
        .unwrap();
    let found = changes(&mut stream, 1);
    let lengths: Vec<usize> = found
        .iter()
        .map(|change| {
            let note = &change.new.as_ref().unwrap().cells[1];
            note.expose_text().unwrap().len()
        })
        .collect();
    let expected: Vec<usize> = (3..=1000).map(|n| n * 100).collect();
    assert_eq!(lengths, expected);
}
