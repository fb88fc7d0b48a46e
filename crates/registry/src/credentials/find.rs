// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a registry to the credentials that are for it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use coracle_oci::image::Name;

use super::{Credentials, DockerConfig, Entry, helper};
use crate::error::{RegistryError, Tried};
use crate::options::Options;
use crate::show::quoted;

/// Most bytes of a file with credentials.
const FILE_LIMIT: u64 = 1 << 20;

/// Finds the credentials for an image, and says where they are from.
pub(crate) fn find(
    options: &Options,
    image: &Name,
) -> Result<(Option<Credentials>, Tried), RegistryError> {
    let registry = image.registry();
    if let Some(credentials) = options.credentials.get(registry) {
        return Ok((Some(credentials.clone()), Tried::Given));
    }
    let mut passed_over = None;
    for path in &options.credential_files {
        let refuse = |reason| RegistryError::CredentialFile {
            path: path.clone(),
            reason,
        };
        let Some(config) = read(path).map_err(refuse)? else {
            continue;
        };
        let entry = config.entry(registry, image.repository()).map_err(refuse)?;
        let Some(entry) = entry else { continue };
        let Entry {
            key,
            helper,
            credentials,
        } = entry;
        match ask(helper.as_deref(), &key, options) {
            Ok(Some((program, credentials))) => {
                return Ok((Some(credentials), Tried::Helper { program, key }));
            }
            Ok(None) => {}
            // Many files name a helper that is not there; images for everyone are pulled all the same.
            Err(reason) => {
                tracing::warn!("{reason}");
                passed_over = Some(reason);
            }
        }
        if let Some(credentials) = credentials {
            let path = path.clone();
            return Ok((Some(credentials), Tried::File { path, key }));
        }
    }
    Ok((None, Tried::Anonymous(passed_over)))
}

fn ask(
    helper: Option<&str>,
    key: &str,
    options: &Options,
) -> Result<Option<(String, Credentials)>, String> {
    let Some(name) = helper else { return Ok(None) };
    let program = helper::program(name)
        .ok_or_else(|| format!("{} is not the name of a credential helper", quoted(name)))?;
    let credentials = helper::get(&program, key, options.timeouts.helper)?;
    Ok(credentials.map(|credentials| (program, credentials)))
}

fn read(path: &Path) -> Result<Option<DockerConfig>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut json = Vec::new();
    file.take(FILE_LIMIT + 1)
        .read_to_end(&mut json)
        .map_err(|error| error.to_string())?;
    if json.len() as u64 > FILE_LIMIT {
        return Err(format!("it has more than {FILE_LIMIT} bytes"));
    }
    // Some tools make an empty file.
    if json.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    DockerConfig::from_json(&json).map(Some)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rstest::rstest;

    use super::*;

    fn options(content: &str) -> (tempfile::TempDir, Options) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, content).unwrap();
        let options = Options {
            credential_files: vec![directory.path().join("missing.json"), path],
            ..Options::default()
        };
        (directory, options)
    }

    fn image() -> Name {
        "a.io/b".parse().unwrap()
    }

    fn user(user: &str) -> Credentials {
        Credentials::Password {
            user: user.into(),
            password: "".into(),
        }
    }

    #[test]
    fn given_credentials_go_first() {
        let (_directory, mut options) = options(r#"{"auths": {"a.io": {"username": "file"}}}"#);
        options.credentials.insert("a.io".into(), user("given"));

        let found = find(&options, &image()).unwrap();

        assert_eq!(found, (Some(user("given")), Tried::Given));
    }

    #[test]
    fn given_credentials_are_for_their_registry_alone() {
        let (_directory, mut options) = options("");
        options.credentials.insert("b.io".into(), user("given"));

        let found = find(&options, &image()).unwrap();

        assert_eq!(found, (None, Tried::Anonymous(None)));
    }

    #[test]
    fn credentials_of_a_file_say_so() {
        let (_directory, options) = options(r#"{"auths": {"a.io": {"username": "file"}}}"#);

        let (found, tried) = find(&options, &image()).unwrap();

        assert_eq!(found, Some(user("file")));
        assert!(
            tried
                .to_string()
                .starts_with("with the credentials for a.io in /"),
            "{tried}"
        );
    }

    #[rstest]
    #[case::missing(
        r#"{"credsStore": "of-no-host"}"#,
        "docker-credential-of-no-host cannot be started"
    )]
    #[case::no_word(
        r#"{"credsStore": "a/b"}"#,
        "`a/b` is not the name of a credential helper"
    )]
    fn helper_that_fails_is_told_where_it_matters(#[case] content: &str, #[case] message: &str) {
        let (_directory, options) = options(content);

        let (found, tried) = find(&options, &image()).unwrap();

        assert_eq!(found, None);
        assert!(tried.to_string().contains(message), "{tried}");
    }

    #[test]
    fn helper_that_fails_falls_back_to_the_file() {
        let (_directory, options) =
            options(r#"{"credsStore": "of-no-host", "auths": {"a.io": {"username": "file"}}}"#);

        let (found, _) = find(&options, &image()).unwrap();

        assert_eq!(found, Some(user("file")));
    }

    #[rstest]
    #[case::broken("{", "ends early")]
    #[case::huge(&" ".repeat(FILE_LIMIT as usize + 1), "more than 1048576 bytes")]
    fn broken_file_is_refused_by_its_path(#[case] content: &str, #[case] message: &str) {
        let (_directory, options) = options(content);

        let error = find(&options, &image()).unwrap_err().to_string();

        assert!(
            error.contains("config.json") && error.contains(message),
            "{error}"
        );
    }
}
