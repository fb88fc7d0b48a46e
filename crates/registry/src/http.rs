// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One request and its answer: to whom it may go, redirects, and what can go wrong on the way.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use ureq::http::header::{HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body, BodyReader, Proxy, Timeout};

use crate::error::RegistryError;
use crate::host;
use crate::options::Options;
use crate::resolve::{HostResolver, ResolveError};
use crate::retry::retry_after;
use crate::show::shown;
use crate::tls;
use crate::url::Url;

/// Most hosts that connections are kept to; redirects name hosts.
const HOST_LIMIT: usize = 32;
/// Most bytes that are read of an answer that says what went wrong.
const SAID_LIMIT: u64 = 16 << 10;

/// What sends requests.
pub(crate) struct Http {
    options: Options,
    roots: OnceLock<Vec<Certificate<'static>>>,
    agents: Mutex<BTreeMap<String, Agent>>,
}

/// Where a registry is served.
pub(crate) struct Origin {
    pub(crate) url: Url,
    /// Whether that is the registry for all that is known: it proves it by TLS, or the user lists it as insecure. A port
    /// of this machine that just is without TLS can be anybody's who came before the registry.
    pub(crate) is_proven: bool,
}

/// What is asked for.
pub(crate) struct Request<'r> {
    pub(crate) url: Url,
    /// For messages.
    pub(crate) what: &'r str,
    /// Media types.
    pub(crate) accept: &'r [&'r str],
    /// Value of the header, for the address' origin alone.
    pub(crate) authorization: Option<&'r str>,
    /// First byte that is wanted.
    pub(crate) from: u64,
    /// A form to post.
    pub(crate) form: Option<String>,
}

impl<'r> Request<'r> {
    pub(crate) fn new(url: Url, what: &'r str) -> Self {
        Self {
            url,
            what,
            accept: &[],
            authorization: None,
            from: 0,
            form: None,
        }
    }
}

/// An answer, its body not yet read.
pub(crate) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: BodyReader<'static>,
    host: String,
    what: String,
    /// Whether the host is another than was asked.
    pub(crate) is_foreign: bool,
    timeouts: crate::options::Timeouts,
}

impl Http {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            options,
            roots: OnceLock::new(),
            agents: Mutex::new(BTreeMap::new()),
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Where a registry is served. A registry on this machine may be without TLS, which is found out unless it has an
    /// authority of its own.
    pub(crate) fn origin(&self, server: &str) -> Result<Origin, RegistryError> {
        let origin = |tls, is_proven| Origin {
            url: Url::new(tls, server, "/v2/"),
            is_proven,
        };
        if self.is_insecure(server) {
            return Ok(origin(false, true));
        }
        if !host::is_loopback(server) || !tls::own(&self.options, server)?.is_empty() {
            return Ok(origin(true, true));
        }
        match self.send(&Request::new(origin(true, true).url, "its API")) {
            // A certificate that is wrong is no reason to do without, nor is silence.
            Err(RegistryError::Protocol { .. } | RegistryError::Cut { .. }) => {
                Ok(origin(false, false))
            }
            Err(error) => Err(error),
            Ok(_) => Ok(origin(true, true)),
        }
    }

    /// Whether an address that `from` names may be asked: a connection that nobody can listen to does not lead to
    /// one that everybody can, and plain HTTP stays on this machine, or goes to where the user wants it.
    pub(crate) fn may_lead(&self, from: &Url, to: &Url) -> Result<(), &'static str> {
        if to.is_tls() {
            return Ok(());
        }
        if from.is_tls() {
            return Err("from HTTPS to plain HTTP");
        }
        if host::is_loopback(to.host()) || self.is_insecure(to.host()) {
            return Ok(());
        }
        Err("to plain HTTP on another host")
    }

    /// Sends a request, and follows redirects; what authorizes it does not leave its origin.
    pub(crate) fn send(&self, request: &Request<'_>) -> Result<Answer, RegistryError> {
        let mut url = request.url.clone();
        let mut authorization = request.authorization;
        let mut is_foreign = false;
        for _ in 0..=self.options.limits.redirects {
            let answer = self.exchange(&url, authorization, request)?;
            let refuse = |reason: &str| RegistryError::Redirect {
                host: url.host().to_owned(),
                what: request.what.to_owned(),
                reason: reason.to_owned(),
            };
            let next = match (answer.status().as_u16(), answer.headers().get(LOCATION)) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => {
                    let location = location.to_str().map_err(|_| refuse("it is not text"))?;
                    url.join(location).map_err(refuse)?
                }
                _ => {
                    let (parts, body) = answer.into_parts();
                    return Ok(Answer {
                        status: parts.status,
                        headers: parts.headers,
                        body: body.into_reader(),
                        host: url.host().to_owned(),
                        what: request.what.to_owned(),
                        is_foreign,
                        timeouts: self.options.timeouts,
                    });
                }
            };
            if request.form.is_some() {
                return Err(refuse("what it was sent is for it alone"));
            }
            self.may_lead(&url, &next).map_err(refuse)?;
            if !next.has_origin_of(&url) {
                authorization = None;
                is_foreign = true;
            }
            url = next;
        }
        Err(RegistryError::Redirect {
            host: request.url.host().to_owned(),
            what: request.what.to_owned(),
            reason: format!("more than {} times", self.options.limits.redirects),
        })
    }

    fn exchange(
        &self,
        url: &Url,
        authorization: Option<&str>,
        request: &Request<'_>,
    ) -> Result<Response<Body>, RegistryError> {
        let agent = self.agent(url.host())?;
        tracing::debug!("asking {url} for {}", request.what);
        let answer = match &request.form {
            Some(form) => agent
                .post(url.full())
                .content_type("application/x-www-form-urlencoded")
                .send(form),
            None => {
                let mut get = agent.get(url.full());
                if !request.accept.is_empty() {
                    get = get.header("Accept", request.accept.join(", "));
                }
                if let Some(authorization) = authorization {
                    get = get.header("Authorization", authorization);
                }
                if request.from > 0 {
                    get = get.header("Range", format!("bytes={}-", request.from));
                }
                get.call()
            }
        };
        answer.map_err(|error| self.failure(error, url, request.what))
    }

    /// Connections to one host, with the authorities that are trusted for it.
    fn agent(&self, authority: &str) -> Result<Agent, RegistryError> {
        if let Some(agent) = self.agents().get(authority) {
            return Ok(agent.clone());
        }
        let mut roots = self.roots()?.clone();
        roots.extend(tls::own(&self.options, authority)?);
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::from(roots))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let proxy = (self.options.proxy_from_environment && !host::is_loopback(authority))
            .then(Proxy::try_from_env)
            .flatten();
        let (timeouts, limits) = (self.options.timeouts, self.options.limits);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(tls)
            .proxy(proxy)
            .user_agent(&self.options.user_agent)
            // What is compressed is compressed in itself; digests are of what is sent.
            .accept_encoding("identity")
            .max_response_header_size(limits.headers)
            .max_idle_connections_per_host(self.options.parallel.get())
            .timeout_resolve(Some(timeouts.resolve))
            .timeout_connect(Some(timeouts.connect))
            .timeout_send_request(Some(timeouts.answer))
            .timeout_send_body(Some(timeouts.answer))
            .timeout_recv_response(Some(timeouts.answer))
            .timeout_per_read(Some(timeouts.stall))
            .timeout_per_write(Some(timeouts.stall))
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::new(), HostResolver);
        let mut agents = self.agents();
        if agents.len() >= HOST_LIMIT {
            agents.clear();
        }
        Ok(agents.entry(authority.to_owned()).or_insert(agent).clone())
    }

    fn agents(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Agent>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roots(&self) -> Result<&Vec<Certificate<'static>>, RegistryError> {
        if let Some(roots) = self.roots.get() {
            return Ok(roots);
        }
        let roots = tls::common(&self.options)?;
        Ok(self.roots.get_or_init(|| roots))
    }

    fn is_insecure(&self, authority: &str) -> bool {
        self.options
            .insecure
            .iter()
            .any(|host| host.eq_ignore_ascii_case(authority))
    }

    /// What a failed exchange means.
    fn failure(&self, error: ureq::Error, url: &Url, what: &str) -> RegistryError {
        let host = url.host().to_owned();
        let timeouts = &self.options.timeouts;
        let unreachable = |reason: String| RegistryError::Unreachable {
            host: host.clone(),
            reason,
        };
        match error {
            ureq::Error::Other(other) if other.is::<ResolveError>() => RegistryError::Resolve {
                host,
                reason: other.to_string(),
            },
            ureq::Error::HostNotFound => RegistryError::Resolve {
                host,
                reason: "its name is not known".to_owned(),
            },
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => unreachable(format!(
                "no connection within {:.1} s",
                timeouts.connect.as_secs_f64()
            )),
            ureq::Error::Rustls(error) => tls_failure(&error, host),
            ureq::Error::LargeResponseHeader(..) => RegistryError::TooLarge {
                host,
                what: "the header of an answer".to_owned(),
                limit: format!("{} bytes", self.options.limits.headers),
            },
            ureq::Error::ConnectProxyFailed(reason) => unreachable(format!(
                "the proxy does not connect to it: {}",
                shown(&reason)
            )),
            ureq::Error::ConnectionFailed => unreachable("no connection".to_owned()),
            ureq::Error::Io(error) if is_connecting(&error) => unreachable(error.to_string()),
            error => body_failure(error, host, what, None, timeouts.stall),
        }
    }
}

/// What a failure means once the host is connected to.
fn body_failure(
    error: ureq::Error,
    host: String,
    what: &str,
    at: Option<(u64, u64)>,
    stall: Duration,
) -> RegistryError {
    let what = what.to_owned();
    match error {
        ureq::Error::Timeout(_) => RegistryError::Stalled {
            host,
            what,
            waited: stall,
        },
        ureq::Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(inner) => tls_failure(inner, host),
            None => match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => RegistryError::Stalled {
                    host,
                    what,
                    waited: stall,
                },
                _ => RegistryError::Cut { host, what, at },
            },
        },
        ureq::Error::BodyStalled => RegistryError::Cut { host, what, at },
        error => RegistryError::Protocol {
            host,
            reason: shown(&error.to_string()),
        },
    }
}

fn tls_failure(error: &rustls::Error, host: String) -> RegistryError {
    match error {
        rustls::Error::InvalidMessage(_) => RegistryError::Protocol {
            host,
            reason: "it does not speak TLS; a registry without it has to be listed as insecure"
                .to_owned(),
        },
        error => RegistryError::Tls {
            reason: tls::reason(error, &host),
            host,
        },
    }
}

/// Whether an error is of connecting rather than of a connection.
fn is_connecting(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable,
        PermissionDenied,
    };
    matches!(
        error.kind(),
        AddrNotAvailable
            | ConnectionRefused
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | PermissionDenied
    )
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.status.as_u16()
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn headers(&self, name: HeaderName) -> impl Iterator<Item = &str> {
        self.headers
            .get_all(name)
            .into_iter()
            .filter_map(|value| value.to_str().ok())
    }

    /// Some of the body.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        at: Option<(u64, u64)>,
    ) -> Result<usize, RegistryError> {
        loop {
            match self.body.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(body_failure(
                        error.into(),
                        self.host.clone(),
                        &self.what,
                        at,
                        self.timeouts.stall,
                    ));
                }
                Ok(count) => return Ok(count),
            }
        }
    }

    /// The whole body, of up to `limit` bytes.
    pub(crate) fn document(mut self, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let started = Instant::now();
        let mut content = Vec::new();
        let mut buffer = [0; 8 << 10];
        loop {
            let count = self.read(&mut buffer, None)?;
            if count == 0 {
                return Ok(content);
            }
            content.extend_from_slice(&buffer[..count]);
            if content.len() as u64 > limit {
                return Err(RegistryError::TooLarge {
                    host: self.host,
                    what: self.what,
                    limit: format!("{limit} bytes"),
                });
            }
            if started.elapsed() > self.timeouts.answer {
                return Err(RegistryError::Stalled {
                    host: self.host,
                    what: self.what,
                    waited: self.timeouts.answer,
                });
            }
        }
    }

    /// What the host says about a failure: the first error of its body (distribution-spec, "Error codes"), on one line.
    pub(crate) fn said(self) -> String {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<Fault>,
        }
        #[derive(Deserialize)]
        struct Fault {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let Ok(body) = self.document(SAID_LIMIT) else {
            return String::new();
        };
        let errors =
            serde_json::from_slice(&body).map_or(Vec::new(), |errors: Errors| errors.errors);
        match errors.first() {
            Some(Fault { code, message }) if message.is_empty() => shown(code),
            Some(Fault { code, message }) => shown(&format!("{code}: {message}")),
            None => String::new(),
        }
    }

    /// The error that an answer's status stands for, where it is neither success nor 401, 403 or 404 of a registry.
    pub(crate) fn into_error(self) -> RegistryError {
        let (host, what) = (self.host.clone(), self.what.clone());
        let status = self.status();
        match status {
            408 | 429 | 500 | 502..=504 | 506..=599 => RegistryError::Unavailable {
                retry_after: self
                    .header(RETRY_AFTER)
                    .and_then(|header| retry_after(header, SystemTime::now())),
                said: self.said(),
                host,
                what,
                status,
            },
            _ => RegistryError::Status {
                said: self.said(),
                host,
                what,
                status,
            },
        }
    }
}
