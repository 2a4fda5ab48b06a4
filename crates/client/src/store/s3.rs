//! A bucket: how it is reached, and in whose name.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;
use zeroize::Zeroizing;

use super::StoreError;
use crate::tls::Roots;

/// How a bucket is reached. The default is AWS in `us-east-1`, and takes credentials
/// to be of use.
#[derive(Debug, Clone, Default)]
pub struct S3Options {
    /// `https://host:port`, without a path. `None`: AWS, in the region.
    pub endpoint: Option<String>,
    /// The region that requests are signed for. `None`: `us-east-1`, which most
    /// stores that are not AWS take as well.
    pub region: Option<String>,
    /// Whether the bucket stands in the path (`https://host/bucket/object`) or before
    /// the host. `None`: in the path, if there is an endpoint.
    pub path_style: Option<bool>,
    /// Whether an endpoint may be `http://` that is not on this machine. Requests are
    /// signed, but what is stored and read can be seen on the way.
    pub allow_http: bool,
    /// Who may vouch for the endpoint.
    pub roots: Roots,
    /// In whose name.
    pub credentials: Option<S3Credentials>,
}

/// Who asks. `Debug` hides all but the key's id.
#[derive(Clone)]
#[cfg_attr(
    not(feature = "s3"),
    allow(dead_code, reason = "read, and then refused")
)]
pub struct S3Credentials {
    /// The access key's id; no secret.
    key_id: String,
    secret: Zeroizing<String>,
    /// Of temporary credentials.
    token: Option<Zeroizing<String>>,
}

impl S3Credentials {
    /// Credentials of these parts; `token` belongs to temporary ones.
    pub fn new(
        key_id: impl Into<String>,
        secret: impl Into<String>,
        token: Option<String>,
    ) -> Self {
        Self {
            key_id: key_id.into(),
            secret: Zeroizing::new(secret.into()),
            token: token.map(Zeroizing::new),
        }
    }

    /// Reads a file as AWS's own programs write it, with one profile:
    ///
    /// ```text
    /// aws_access_key_id     = AKIA...
    /// aws_secret_access_key = ...
    /// ```
    ///
    /// and `aws_session_token`, if there is one. Lines may begin with `#`; one line
    /// may name the profile, in brackets. Nobody but its owner may have access to it,
    /// unless it is `guarded_elsewhere`, as systemd guards credentials.
    ///
    /// # Errors
    /// [`StoreError::Credentials`]; it never shows the content.
    pub fn read(path: &Path, guarded_elsewhere: bool) -> Result<Self, StoreError> {
        let bad = |problem: String| StoreError::Credentials {
            path: path.to_owned(),
            problem,
        };
        let text = read_secret(path, guarded_elsewhere).map_err(|e| bad(e.to_string()))?;
        Self::parse(&text).map_err(|problem| bad(problem.to_owned()))
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let (mut key_id, mut secret, mut token) = (None, None, None);
        let mut profiles = 0;
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.starts_with('[') && line.ends_with(']') {
                profiles += 1;
                continue;
            }
            let (name, value) = line
                .split_once('=')
                .ok_or("a line is no `name = value`; is this a file of S3 credentials?")?;
            let field = match name.trim() {
                "aws_access_key_id" => &mut key_id,
                "aws_secret_access_key" => &mut secret,
                "aws_session_token" => &mut token,
                // What else AWS's programs keep there, as `region`.
                _ => continue,
            };
            if field.replace(value.trim()).is_some() {
                return Err("it says something twice; leave one profile in it");
            }
        }
        if profiles > 1 {
            return Err("it has several profiles; leave one in it");
        }
        match (key_id, secret) {
            (Some(key_id), Some(secret)) if !key_id.is_empty() && !secret.is_empty() => {
                Ok(Self::new(key_id, secret, token.map(str::to_owned)))
            }
            _ => Err("it needs `aws_access_key_id = …` and `aws_secret_access_key = …`"),
        }
    }
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Credentials({})", self.key_id)
    }
}

fn read_secret(path: &Path, guarded_elsewhere: bool) -> io::Result<Zeroizing<String>> {
    let file = File::open(path)?;
    if !guarded_elsewhere && file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other(
            "others than its owner may have access to it; run chmod 600 on it, and think of the \
             credentials as seen if others were on this machine",
        ));
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_CREDENTIALS));
    file.take(MAX_CREDENTIALS as u64)
        .read_to_string(&mut text)?;
    if text.len() == MAX_CREDENTIALS {
        return Err(io::Error::other("it is too long for a file of credentials"));
    }
    Ok(text)
}

/// Bytes of a file of credentials; session tokens have up to some two thousand.
const MAX_CREDENTIALS: usize = 16 << 10;

/// The store behind `s3://` and `place`, and the prefix in it.
pub(super) fn open(
    place: &str,
    url: &str,
    options: &S3Options,
) -> Result<(Arc<dyn ObjectStore>, String), StoreError> {
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let is_plain =
        |c: u8, more: &[u8]| c.is_ascii_alphanumeric() || b"-._".contains(&c) || more.contains(&c);
    let is_bucket = (3..=63).contains(&bucket.len()) && bucket.bytes().all(|c| is_plain(c, b""));
    let is_prefix = prefix.bytes().all(|c| is_plain(c, b"/=+"))
        && (prefix.is_empty()
            || !prefix
                .split('/')
                .any(|part| matches!(part, "" | "." | "..")));
    if !is_bucket || !is_prefix {
        return Err(StoreError::url(url));
    }
    connect(bucket, url, options).map(|objects| (objects, prefix.to_owned()))
}

#[cfg(not(feature = "s3"))]
fn connect(_: &str, url: &str, _: &S3Options) -> Result<Arc<dyn ObjectStore>, StoreError> {
    Err(StoreError::NotBuilt {
        url: url.to_owned(),
    })
}

#[cfg(feature = "s3")]
fn connect(
    bucket: &str,
    url: &str,
    options: &S3Options,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    use object_store::aws::{AmazonS3Builder, AwsCredential};
    use object_store::{ClientOptions, StaticCredentialProvider};

    let bad = |problem: String| StoreError::S3 {
        url: url.to_owned(),
        problem,
    };
    let credentials = options.credentials.as_ref().ok_or_else(|| {
        bad(
            "who asks? name a file of credentials, or set AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY"
                .into(),
        )
    })?;
    let credential = AwsCredential {
        key_id: credentials.key_id.clone(),
        secret_key: credentials.secret.to_string(),
        token: credentials.token.as_ref().map(|token| token.to_string()),
    };
    let server = server(bucket, options).map_err(bad)?;
    let store = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(options.region())
        .with_endpoint(server.url())
        .with_virtual_hosted_style_request(!options.is_path_style())
        .with_credentials(Arc::new(StaticCredentialProvider::new(credential)))
        // Whether plain HTTP is allowed has been looked at.
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(retries())
        .with_http_connector(server)
        .build()
        .map_err(|e| bad(e.to_string()))?;
    Ok(Arc::new(store))
}

#[cfg(feature = "s3")]
impl S3Options {
    fn region(&self) -> &str {
        self.region.as_deref().unwrap_or("us-east-1")
    }

    fn is_path_style(&self) -> bool {
        self.path_style.unwrap_or(self.endpoint.is_some())
    }
}

/// The server that has the bucket.
#[cfg(feature = "s3")]
fn server(bucket: &str, options: &S3Options) -> Result<super::http::Server, String> {
    let region = options.region();
    if !region
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || c == b'-')
    {
        return Err(format!("{region:?} is no region"));
    }
    let aws = || format!("https://s3.{region}.amazonaws.com");
    let endpoint = options.endpoint.clone().unwrap_or_else(aws);
    let (scheme, authority) = endpoint
        .trim_end_matches('/')
        .split_once("://")
        .filter(|(scheme, authority)| {
            matches!(*scheme, "http" | "https") && !authority.contains(['/', '?', '#', '@'])
        })
        .ok_or("its endpoint is not https://host:port, without a path or a user")?;
    let authority = match options.is_path_style() {
        true => authority.to_owned(),
        false => format!("{bucket}.{authority}"),
    };
    let server = super::http::Server::new(scheme == "https", &authority, options.roots.clone())
        .ok_or_else(|| format!("its endpoint has no host that can be asked: {authority:?}"))?;
    if scheme == "http" && !options.allow_http && !server.is_here() {
        return Err(
            "its endpoint is plain http://, where everybody on the way reads along; use https://, \
             or allow it: allow_http = true"
                .into(),
        );
    }
    Ok(server)
}

/// A few, soon: whoever asked waits, and asks again later.
#[cfg(feature = "s3")]
fn retries() -> object_store::RetryConfig {
    use std::time::Duration;

    object_store::RetryConfig {
        backoff: object_store::BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(&str, &str, Option<&str>), &str>) {
        let read = S3Credentials::parse(text);
        let read = read.as_ref().map(|it| {
            let token = it.token.as_ref().map(|token| token.as_str());
            (it.key_id.as_str(), it.secret.as_str(), token)
        });
        assert_eq!(read.map_err(|e| *e), expected);
    }

    #[test]
    fn reads_what_aws_writes() {
        check(
            "[default]\naws_access_key_id = AKIA1\naws_secret_access_key=a/b+c=\nregion = x\n",
            Ok(("AKIA1", "a/b+c=", None)),
        );
    }

    #[test]
    fn reads_temporary_ones() {
        check(
            "# of the night\naws_access_key_id=A\naws_secret_access_key=S\naws_session_token=T==\n",
            Ok(("A", "S", Some("T=="))),
        );
    }

    #[test]
    fn takes_no_file_whose_profile_must_be_guessed() {
        check(
            "[a]\naws_access_key_id=A\naws_secret_access_key=S\n[b]\n",
            Err("it has several profiles; leave one in it"),
        );
        check(
            "aws_access_key_id=A\naws_access_key_id=B\naws_secret_access_key=S\n",
            Err("it says something twice; leave one profile in it"),
        );
    }

    #[test]
    fn says_what_is_missing() {
        let needs = "it needs `aws_access_key_id = …` and `aws_secret_access_key = …`";
        check("", Err(needs));
        check("aws_access_key_id=A\naws_secret_access_key=\n", Err(needs));
        check(
            "secret\n",
            Err("a line is no `name = value`; is this a file of S3 credentials?"),
        );
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_and_not_shown() {
        use std::fs;

        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("credentials");
        fs::write(&path, "aws_access_key_id=A\naws_secret_access_key=hush\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = S3Credentials::read(&path, false).unwrap_err().to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
        S3Credentials::read(&path, true).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let shown = format!("{:?}", S3Credentials::read(&path, false).unwrap());
        assert_eq!(shown, "S3Credentials(A)");
        fs::write(&path, vec![b'#'; MAX_CREDENTIALS]).unwrap();
        assert!(S3Credentials::read(&path, false).is_err());
    }
}
