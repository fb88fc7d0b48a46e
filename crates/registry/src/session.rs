// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One repository of one registry, and what the registry knows of who is asking
//! (distribution-spec; the token protocol is docker's "Token Authentication Specification").

use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_oci::image::Name;
use serde::Deserialize;
use ureq::http::header::WWW_AUTHENTICATE;

use crate::challenge::Challenge;
use crate::credentials::{Credentials, find};
use crate::error::{RegistryError, Tried};
use crate::host;
use crate::http::{Answer, Http, Origin, Request};
use crate::show::{json_fault, quoted};
use crate::url::Url;

/// Most headers with challenges that are read.
const CHALLENGE_HEADER_LIMIT: usize = 8;

/// Why a registry is shown no credentials that may be there for it.
const UNPROVEN: &str = "it has no TLS, and is not listed as insecure";

/// A repository that is asked.
pub(crate) struct Session<'c> {
    http: &'c Http,
    image: &'c Name,
    origin: Origin,
    authorization: Mutex<Authorization>,
}

/// What goes into the `Authorization` header.
#[derive(Default)]
struct Authorization {
    header: Option<String>,
    /// Counts headers, so that of several threads that were refused one asks for the next.
    generation: u64,
    /// Looked up when a registry asks for them.
    found: Option<(Option<Credentials>, Tried)>,
}

/// A token server's answer.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl<'c> Session<'c> {
    pub(crate) fn new(http: &'c Http, image: &'c Name) -> Result<Self, RegistryError> {
        Ok(Self {
            http,
            image,
            origin: http.origin(host::server(image))?,
            authorization: Mutex::default(),
        })
    }

    /// Host and port that serve the registry.
    pub(crate) fn host(&self) -> &str {
        self.origin.url.host()
    }

    /// Asks for `kind/name` of the repository: manifests by tag or digest, blobs by digest.
    pub(crate) fn get(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        accept: &[&str],
        from: u64,
    ) -> Result<Answer, RegistryError> {
        let path = format!("/v2/{}/{kind}/{name}", self.image.repository());
        let mut request = Request::new(self.origin.url.with_path(&path), what);
        request.accept = accept;
        request.from = from;

        let (generation, header) = self.current();
        request.authorization = header.as_deref();
        let answer = self.http.send(&request)?;
        // Whom a redirect leads to is not told who is asking, whatever it wants.
        if answer.status() != 401 || answer.is_foreign {
            return self.checked(answer, what);
        }
        let header = self.authenticate(generation, answer)?;
        request.authorization = Some(&header);
        let answer = self.http.send(&request)?;
        self.checked(answer, what)
    }

    fn checked(&self, answer: Answer, what: &str) -> Result<Answer, RegistryError> {
        match answer.status() {
            200 | 206 => Ok(answer),
            401 | 403 if !answer.is_foreign => {
                let mut state = self.lock();
                self.look_up(&mut state)?;
                Err(self.unauthorized(&state, answer))
            }
            404 if !answer.is_foreign => Err(RegistryError::NotFound {
                registry: self.image.registry().to_owned(),
                what: what.to_owned(),
                said: answer.said(),
            }),
            _ => Err(answer.into_error()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Authorization> {
        self.authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> (u64, Option<String>) {
        let state = self.lock();
        (state.generation, state.header.clone())
    }

    fn look_up<'s>(
        &self,
        state: &'s mut Authorization,
    ) -> Result<&'s mut Authorization, RegistryError> {
        if state.found.is_none() {
            state.found = Some(match self.origin.is_proven {
                true => find(self.http.options(), self.image)?,
                false => (None, Tried::Anonymous(Some(UNPROVEN.to_owned()))),
            });
        }
        Ok(state)
    }

    /// Makes a header in place of the one of `generation`, which was refused with `answer`.
    fn authenticate(&self, generation: u64, answer: Answer) -> Result<String, RegistryError> {
        let mut state = self.lock();
        if let Some(header) = &state.header
            && state.generation != generation
        {
            return Ok(header.clone());
        }
        let challenges: Vec<Challenge> = answer
            .headers(WWW_AUTHENTICATE)
            .take(CHALLENGE_HEADER_LIMIT)
            .flat_map(Challenge::parse)
            .collect();
        let state = self.look_up(&mut state)?;
        let credentials = state.found.as_ref().and_then(|(found, _)| found.as_ref());
        let by_scheme = |scheme| challenges.iter().find(|found| found.scheme == scheme);
        let header = match (by_scheme("bearer"), by_scheme("basic"), credentials) {
            (Some(_), _, Some(Credentials::RegistryToken(token))) => {
                format!("Bearer {}", token.reveal())
            }
            (Some(challenge), _, credentials) => {
                format!("Bearer {}", self.token(challenge, credentials, state)?)
            }
            (None, Some(_), Some(Credentials::Password { user, password })) => {
                basic(user, password.reveal())
            }
            (None, Some(_), _) => return Err(self.unauthorized(state, answer)),
            (None, None, _) => {
                let schemes: Vec<String> = challenges
                    .iter()
                    .map(|found| quoted(&found.scheme))
                    .collect();
                return Err(self.challenge(match schemes.is_empty() {
                    true => "it does not say which".to_owned(),
                    false => format!("by {}", schemes.join(" or ")),
                }));
            }
        };
        // A token that was given can hold what no header may.
        if !header.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(self.challenge("the credentials do not fit a header".to_owned()));
        }
        state.header = Some(header.clone());
        state.generation += 1;
        Ok(header)
    }

    /// Asks the token server that the registry names for a token to pull with.
    fn token(
        &self,
        challenge: &Challenge,
        credentials: Option<&Credentials>,
        state: &Authorization,
    ) -> Result<String, RegistryError> {
        let parameter = |name| challenge.parameters.get(name).map(String::as_str);
        let realm = parameter("realm").unwrap_or_default();
        let realm = Url::parse(realm)
            .and_then(|url| self.http.may_lead(&self.origin.url, &url).map(|()| url))
            .map_err(|reason| self.challenge(format!("its token server is not asked: {reason}")))?;
        let scope = format!("repository:{}:pull", self.image.repository());
        let mut fields = vec![("scope", parameter("scope").unwrap_or(&scope))];
        fields.extend(parameter("service").map(|service| ("service", service)));

        let what = "a token";
        let authorization;
        let mut request;
        match credentials {
            Some(Credentials::IdentityToken(token)) => {
                fields.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "coracle"),
                    ("refresh_token", token.reveal()),
                ]);
                request = Request::new(realm, what);
                request.form = Some(form(&fields));
            }
            Some(Credentials::Password { user, password }) => {
                fields.push(("account", user));
                authorization = basic(user, password.reveal());
                request = Request::new(realm.with_query(&form(&fields)), what);
                request.authorization = Some(&authorization);
            }
            Some(Credentials::RegistryToken(_)) | None => {
                request = Request::new(realm.with_query(&form(&fields)), what);
            }
        }
        let answer = self.http.send(&request)?;
        match answer.status() {
            200 => {}
            401 | 403 => return Err(self.unauthorized(state, answer)),
            _ => return Err(answer.into_error()),
        }
        let host = answer.host().to_owned();
        let refuse = |reason: &str| RegistryError::Token {
            registry: self.image.registry().to_owned(),
            host: host.clone(),
            reason: reason.to_owned(),
        };
        let json = answer.document(self.http.options().limits.token)?;
        let token: Token = serde_json::from_slice(&json)
            .map_err(|error| refuse(&format!("its answer {}", json_fault(&error))))?;
        let token = [token.token, token.access_token]
            .into_iter()
            .flatten()
            .find(|token| !token.is_empty())
            .ok_or_else(|| refuse("its answer holds none"))?;
        if token.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(token)
        } else {
            Err(refuse("its answer holds one that does not fit a header"))
        }
    }

    fn challenge(&self, reason: String) -> RegistryError {
        RegistryError::Challenge {
            registry: self.image.registry().to_owned(),
            reason,
        }
    }

    fn unauthorized(&self, state: &Authorization, answer: Answer) -> RegistryError {
        let registry = self.image.registry();
        let tried = match &state.found {
            Some((_, tried)) => tried.clone(),
            None => Tried::Anonymous(None),
        };
        let hint = match (&tried, self.http.options().credential_files.first()) {
            (Tried::Anonymous(_), Some(path)) if self.origin.is_proven => format!(
                "credentials for {registry} go into {}, where `docker login` and `skopeo login` put them",
                path.display()
            ),
            _ => String::new(),
        };
        RegistryError::Unauthorized {
            registry: registry.to_owned(),
            repository: self.image.repository().to_owned(),
            status: answer.status(),
            said: answer.said(),
            tried: Box::new(tried),
            hint,
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Fields as a query or a form.
fn form(fields: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name}={}", encoded(value)))
        .collect();
    pairs.join("&")
}

/// All but unreserved characters by their bytes (RFC 3986, 2.1 and 2.3).
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_is_encoded() {
        let fields = [("scope", "repository:a/b:pull"), ("account", "é&=+ %")];

        assert_eq!(
            form(&fields),
            "scope=repository%3Aa%2Fb%3Apull&account=%C3%A9%26%3D%2B%20%25"
        );
    }

    #[test]
    fn basic_is_base64() {
        assert_eq!(
            basic("Aladdin", "open sesame"),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
    }
}
