//! `[… .s3]` of a configuration: how the bucket behind `s3://` is reached.

use std::env::VarError;
use std::path::{Path, PathBuf};

use pitser_client::Roots;
use pitser_client::store::{S3Credentials, S3Options};
use serde::Deserialize;

use crate::files;
use crate::outcome::Failure;

/// The section. What it leaves open, the usual variables of AWS's programs say.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct S3 {
    endpoint: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
    #[serde(default)]
    allow_http: bool,
    ca: Option<PathBuf>,
    credentials_file: Option<String>,
}

impl S3 {
    /// Why the credentials cannot be had here, if systemd was to hand them over and has
    /// handed over nothing; `name` and `dir` as of [`s3_options`].
    pub(crate) fn absent(&self, name: &str, dir: &Path) -> Result<Option<String>, Failure> {
        let Some(file) = &self.credentials_file else {
            return Ok(None);
        };
        let secret = files::secret(dir, &format!("{name}.credentials_file"), file)?;
        Ok(secret.path().err())
    }
}

/// How the store at `url` is reached; `section` is called `name`, and its paths start
/// at `dir`. A folder takes nothing of it, and may not have it.
pub(crate) fn s3_options(
    url: &str,
    section: Option<&S3>,
    name: &str,
    dir: &Path,
) -> Result<S3Options, Failure> {
    if !url.starts_with("s3://") {
        return match section {
            None => Ok(S3Options::default()),
            Some(_) => Err(Failure::Input(format!(
                "[{name}] is for s3://bucket/prefix; take it out, or name a bucket"
            ))),
        };
    }
    let section = section.cloned().unwrap_or_default();
    let roots = match &section.ca {
        Some(file) => Roots::read(&dir.join(file)).map_err(Failure::input)?,
        None => Roots::system(),
    };
    Ok(S3Options {
        credentials: match &section.credentials_file {
            Some(file) => {
                let (path, guarded) =
                    files::guarded(dir, &format!("{name}.credentials_file"), file)?;
                Some(S3Credentials::read(&path, guarded).map_err(Failure::input)?)
            }
            None => credentials_of_environment()?,
        },
        endpoint: or_variable(
            section.endpoint,
            &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"],
        )?,
        region: or_variable(section.region, &["AWS_REGION", "AWS_DEFAULT_REGION"])?,
        path_style: section.path_style,
        allow_http: section.allow_http,
        roots,
    })
}

fn credentials_of_environment() -> Result<Option<S3Credentials>, Failure> {
    let key_id = variable("AWS_ACCESS_KEY_ID")?;
    let secret = variable("AWS_SECRET_ACCESS_KEY")?;
    match (key_id, secret) {
        (Some(key_id), Some(secret)) => Ok(Some(S3Credentials::new(
            key_id,
            secret,
            variable("AWS_SESSION_TOKEN")?,
        ))),
        (None, None) => Ok(None),
        _ => Err(Failure::Input(
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: set both or none".into(),
        )),
    }
}

fn or_variable(configured: Option<String>, names: &[&str]) -> Result<Option<String>, Failure> {
    let mut found = configured;
    for name in names {
        if found.is_none() {
            found = variable(name)?;
        }
    }
    Ok(found)
}

/// A variable of the environment that is set to something.
fn variable(name: &str) -> Result<Option<String>, Failure> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(Failure::Input(format!("{name} is not UTF-8 text"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn section(text: &str) -> S3 {
        toml::from_str(text).unwrap()
    }

    fn refused(url: &str, section: &S3, dir: &Path) -> String {
        match s3_options(url, Some(section), "a.s3", dir) {
            Err(Failure::Input(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_folder_has_no_section() {
        let text = refused("file:///x", &S3::default(), Path::new("/"));
        assert!(text.starts_with("[a.s3] is for s3://"), "{text}");
        s3_options("file:///x", None, "a.s3", Path::new("/")).unwrap();
    }

    #[test]
    fn the_file_of_credentials_is_for_its_owner_alone() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("credentials");
        fs::write(&path, "aws_access_key_id=A\naws_secret_access_key=hush\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let section = section(
            "endpoint = \"https://s3.example.org\"\nregion = \"here\"\n\
             credentials_file = \"credentials\"",
        );
        let text = refused("s3://bucket", &section, folder.path());
        assert!(
            text.contains("chmod 600") && !text.contains("hush"),
            "{text}"
        );
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let options = s3_options("s3://bucket", Some(&section), "a.s3", folder.path()).unwrap();
        assert!(options.credentials.is_some());
        assert_eq!(options.region.as_deref(), Some("here"));
        assert!(!format!("{options:?} {section:?}").contains("hush"));
    }
}
