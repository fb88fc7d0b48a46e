// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Docker's `config.json`, as far as it is about credentials.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Deserializer};

use super::{Credentials, Secret};
use crate::show::json_fault;

/// Base64 with or without padding: both are found.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// The default registry, and what its credentials are kept under.
const DOCKER_IO: (&str, &str) = ("docker.io", "https://index.docker.io/v1/");

/// A file with credentials, or with where they are.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DockerConfig {
    #[serde(default, deserialize_with = "null_as_default")]
    auths: BTreeMap<String, Auth>,
    #[serde(default, deserialize_with = "null_as_default")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_as_default")]
    creds_store: String,
}

/// One registry's credentials.
#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
struct Auth {
    #[serde(default, deserialize_with = "null_as_default")]
    auth: String,
    #[serde(default, deserialize_with = "null_as_default")]
    username: String,
    #[serde(default, deserialize_with = "null_as_default")]
    password: String,
    #[serde(default, deserialize_with = "null_as_default")]
    identitytoken: String,
    #[serde(default, deserialize_with = "null_as_default")]
    registrytoken: String,
}

/// What a file has for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name in the file, or for the helper.
    pub key: String,
    /// The helper to ask, by its short name.
    pub helper: Option<String>,
    /// The credentials, where they are in the file; also the fallback where the helper has none.
    pub credentials: Option<Credentials>,
}

impl DockerConfig {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without its content.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| format!("it {}", json_fault(&error)))
    }

    /// What the file has for `repository` of `registry` (`docker.io`, `localhost:5000`).
    ///
    /// # Errors
    ///
    /// What is wrong with the entry, without its secret.
    pub fn entry(&self, registry: &str, repository: &str) -> Result<Option<Entry>, String> {
        let in_file = match self.best(registry, repository) {
            Some((key, auth)) => auth
                .credentials()
                .map_err(|reason| format!("the entry {} {reason}", crate::show::quoted(key)))?
                .map(|credentials| (key, credentials)),
            None => None,
        };
        let helper = self
            .cred_helpers
            .iter()
            .find(|(key, _)| is_for(key, registry, "").is_some())
            .map(|(key, helper)| (key.as_str(), helper))
            .or_else(|| {
                // docker keeps its default registry under a name of its own, and others by host.
                let key = match registry == DOCKER_IO.0 {
                    true => DOCKER_IO.1,
                    false => registry,
                };
                (!self.creds_store.is_empty()).then_some((key, &self.creds_store))
            });
        Ok(match (helper, in_file) {
            (Some((key, helper)), in_file) => Some(Entry {
                key: key.to_owned(),
                helper: Some(helper.clone()),
                credentials: in_file.map(|(_, credentials)| credentials),
            }),
            (None, Some((key, credentials))) => Some(Entry {
                key: key.to_owned(),
                helper: None,
                credentials: Some(credentials),
            }),
            (None, None) => None,
        })
    }

    /// The entry whose name fits best: a longer path goes before a shorter one (containers-auth.json(5)).
    fn best(&self, registry: &str, repository: &str) -> Option<(&str, &Auth)> {
        self.auths
            .iter()
            .filter_map(|(key, auth)| {
                is_for(key, registry, repository).map(|length| (length, key.as_str(), auth))
            })
            .max_by_key(|(length, ..)| *length)
            .map(|(_, key, auth)| (key, auth))
    }
}

/// Whether a key is for the registry, or for a path in it that holds the repository: then how long that path is.
fn is_for(key: &str, registry: &str, repository: &str) -> Option<usize> {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_IO.0,
        _ => host,
    };
    if !host.eq_ignore_ascii_case(registry) {
        return None;
    }
    match path.trim_end_matches('/') {
        "" | "v1" | "v2" => Some(0),
        path => {
            let rest = repository.strip_prefix(path)?;
            (rest.is_empty() || rest.starts_with('/')).then_some(path.len())
        }
    }
}

impl Auth {
    fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        if !self.registrytoken.is_empty() {
            let token = Secret::from(self.registrytoken.as_str());
            return Ok(Some(Credentials::RegistryToken(token)));
        }
        if !self.identitytoken.is_empty() {
            let token = Secret::from(self.identitytoken.as_str());
            return Ok(Some(Credentials::IdentityToken(token)));
        }
        if self.auth.is_empty() {
            return Ok((!self.username.is_empty()).then(|| Credentials::Password {
                user: self.username.clone(),
                password: self.password.as_str().into(),
            }));
        }
        let decoded = BASE64
            .decode(self.auth.trim())
            .map_err(|_| "has an `auth` that is not base64")?;
        let decoded = String::from_utf8(decoded).map_err(|_| "has an `auth` that is not text")?;
        let (user, password) = decoded
            .split_once(':')
            .ok_or("has an `auth` without a colon between user and password")?;
        Ok(Some(Credentials::Password {
            user: user.to_owned(),
            // Some writers pad with zeros.
            password: password.trim_end_matches('\0').into(),
        }))
    }
}

fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn entry(json: &str, registry: &str, repository: &str) -> Option<Entry> {
        DockerConfig::from_json(json.as_bytes())
            .unwrap()
            .entry(registry, repository)
            .unwrap()
    }

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password {
            user: user.into(),
            password: password.into(),
        })
    }

    // `dTpw` is `u:p`, `dTpwOnE=` is `u:p:q`, `dTpwAAA=` is `u:p` and two zeros.
    #[rstest]
    #[case::host(
        r#"{"auths": {"ghcr.io": {"auth": "dTpw"}}}"#,
        "ghcr.io",
        password("u", "p")
    )]
    #[case::address(
        r#"{"auths": {"https://ghcr.io/v2/": {"auth": "dTpw"}}}"#,
        "ghcr.io",
        password("u", "p")
    )]
    #[case::docker_io(
        r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}}}"#,
        "docker.io",
        password("u", "p")
    )]
    #[case::port(
        r#"{"auths": {"localhost:5000": {"auth": "dTpw"}}}"#,
        "localhost:5000",
        password("u", "p")
    )]
    #[case::other_port(
        r#"{"auths": {"localhost:5001": {"auth": "dTpw"}}}"#,
        "localhost:5000",
        None
    )]
    #[case::host_that_starts_so(
        r#"{"auths": {"ghcr.io": {"auth": "dTpw"}}}"#,
        "ghcr.io.example.org",
        None
    )]
    #[case::colon_in_password(
        r#"{"auths": {"a.io": {"auth": "dTpwOnE"}}}"#,
        "a.io",
        password("u", "p:q")
    )]
    #[case::padding(
        r#"{"auths": {"a.io": {"auth": "dTpwOnE="}}}"#,
        "a.io",
        password("u", "p:q")
    )]
    #[case::zeros(
        r#"{"auths": {"a.io": {"auth": "dTpwAAA="}}}"#,
        "a.io",
        password("u", "p")
    )]
    #[case::plain(
        r#"{"auths": {"a.io": {"username": "u", "password": "p"}}}"#,
        "a.io",
        password("u", "p")
    )]
    #[case::identity(r#"{"auths": {"a.io": {"auth": "dTpw", "identitytoken": "t"}}}"#, "a.io", Some(Credentials::IdentityToken("t".into())))]
    #[case::registry_token(r#"{"auths": {"a.io": {"registrytoken": "t"}}}"#, "a.io", Some(Credentials::RegistryToken("t".into())))]
    #[case::empty_entry(r#"{"auths": {"a.io": {}}}"#, "a.io", None)]
    #[case::null(
        r#"{"auths": null, "credHelpers": null, "credsStore": null}"#,
        "a.io",
        None
    )]
    #[case::other_settings(r#"{"HttpHeaders": {"a": "b"}, "psFormat": 3}"#, "a.io", None)]
    fn credentials_are_found_by_registry(
        #[case] json: &str,
        #[case] registry: &str,
        #[case] expected: Option<Credentials>,
    ) {
        let found = entry(json, registry, "a/b").and_then(|entry| entry.credentials);

        assert_eq!(found, expected);
    }

    #[rstest]
    #[case::whole("team/app", "long")]
    #[case::below("team/app/part", "long")]
    #[case::beside("team/application", "short")]
    #[case::elsewhere("other", "host")]
    fn longest_path_goes_first(#[case] repository: &str, #[case] user: &str) {
        let json = r#"{"auths": {
            "a.io": {"username": "host"}, "a.io/team": {"username": "short"}, "a.io/team/app": {"username": "long"}}}"#;

        let found = entry(json, "a.io", repository).and_then(|entry| entry.credentials);

        assert_eq!(found, password(user, ""));
    }

    #[rstest]
    #[case::of_the_registry(
        r#"{"credHelpers": {"a.io": "one"}, "credsStore": "all"}"#,
        "a.io",
        "one",
        "a.io"
    )]
    #[case::of_all(
        r#"{"credHelpers": {"b.io": "one"}, "credsStore": "all"}"#,
        "a.io",
        "all",
        "a.io"
    )]
    #[case::docker_io(
        r#"{"credsStore": "all"}"#,
        "docker.io",
        "all",
        "https://index.docker.io/v1/"
    )]
    fn helper_is_found_by_registry(
        #[case] json: &str,
        #[case] registry: &str,
        #[case] helper: &str,
        #[case] key: &str,
    ) {
        let found = entry(json, registry, "x").unwrap();

        assert_eq!(found.helper.as_deref(), Some(helper));
        assert_eq!(found.key, key);
    }

    #[rstest]
    #[case::no_json("{", "ends early at line 1")]
    #[case::other_kind(r#"{"auths": {"a.io": "hunter2"}}"#, "unexpected kind at line 1")]
    #[case::other_kind_within(
        r#"{"auths": {"a.io": {"auth": ["hunter2"]}}}"#,
        "unexpected kind at line 1"
    )]
    fn broken_file_is_refused_without_its_content(#[case] json: &str, #[case] message: &str) {
        let error = DockerConfig::from_json(json.as_bytes()).err().unwrap();

        assert!(error.contains(message), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    // `aHVudGVyMg==` is `hunter2`, `/w==` no text.
    #[rstest]
    #[case::no_base64("hunter2!", "is not base64")]
    #[case::no_text("/w==", "is not text")]
    #[case::no_colon("aHVudGVyMg==", "without a colon")]
    fn broken_entry_is_refused_without_its_secret(#[case] auth: &str, #[case] message: &str) {
        let json = format!(r#"{{"auths": {{"a.io": {{"auth": "{auth}"}}}}}}"#);
        let config = DockerConfig::from_json(json.as_bytes()).unwrap();

        let error = config.entry("a.io", "x").unwrap_err();

        assert!(
            error.contains(message) && error.contains("`a.io`"),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn secrets_do_not_show_themselves() {
        let credentials = [
            password("u", "hunter2"),
            Some(Credentials::IdentityToken("hunter2".into())),
        ];

        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
