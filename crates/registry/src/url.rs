// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Addresses of what is asked for. Those of redirects and token servers come from others.

use std::fmt;

use ureq::http::Uri;

use crate::host;

/// Longest address, in bytes.
const LIMIT: usize = 16 << 10;

/// An absolute address of HTTP or HTTPS.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    tls: bool,
    authority: String,
    /// Path and query, which can hold what gives access; never shown.
    path: String,
}

impl Url {
    /// An address at a host that was checked.
    pub(crate) fn new(tls: bool, authority: &str, path: &str) -> Self {
        Self {
            tls,
            authority: authority.to_ascii_lowercase(),
            path: path.to_owned(),
        }
    }

    /// Reads an absolute address.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > LIMIT {
            return Err("the address is too long");
        }
        let uri: Uri = text.parse().map_err(|_| "the address cannot be read")?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("the address is neither of HTTPS nor of HTTP"),
        };
        // Also refuses `user:password@`: credentials come from the user alone.
        let authority = uri
            .authority()
            .map(|authority| authority.as_str())
            .filter(|authority| host::is_valid(authority))
            .ok_or("the address has no valid host")?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self::new(tls, authority, path))
    }

    /// The address that a `Location` header at this one names.
    pub(crate) fn join(&self, location: &str) -> Result<Self, &'static str> {
        let scheme = if self.tls { "https" } else { "http" };
        if location.starts_with("//") {
            Self::parse(&format!("{scheme}:{location}"))
        } else if location.starts_with('/') {
            Self::parse(&format!("{scheme}://{}{location}", self.authority))
        } else {
            Self::parse(location)
        }
    }

    /// Another path at the same place.
    pub(crate) fn with_path(&self, path: &str) -> Self {
        Self::new(self.tls, &self.authority, path)
    }

    /// The same, with more in its query.
    pub(crate) fn with_query(&self, query: &str) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        self.with_path(&format!("{}{separator}{query}", self.path))
    }

    /// Whether it is of HTTPS.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host with its port.
    pub(crate) fn host(&self) -> &str {
        &self.authority
    }

    /// Whether what is for the one is for the other.
    pub(crate) fn has_origin_of(&self, other: &Self) -> bool {
        self.origin() == other.origin()
    }

    fn origin(&self) -> (bool, &str, u16) {
        let default = if self.tls { 443 } else { 80 };
        let (host, port) = host::split(&self.authority).unwrap_or((&self.authority, None));
        (self.tls, host, port.unwrap_or(default))
    }

    /// The whole address, to ask with.
    pub(crate) fn full(&self) -> String {
        format!("{self}{}", self.path)
    }
}

/// Without path and query.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/a?b=c", "https://r.io:5000/a?b=c")]
    #[case("//b.io/a", "https://b.io/a")]
    #[case("http://b.io/a", "http://b.io/a")]
    #[case("HTTPS://B.io/A", "https://b.io/A")]
    #[case("https://b.io", "https://b.io/")]
    #[case("https://b.io/a#fragment", "https://b.io/a")]
    fn location_is_joined(#[case] location: &str, #[case] expected: &str) {
        let base = Url::new(true, "r.io:5000", "/v2/x");

        assert_eq!(base.join(location).unwrap().full(), expected);
    }

    #[rstest]
    #[case("")]
    #[case("a/b")]
    #[case("file:///etc/passwd")]
    #[case("https://user:secret@b.io/")]
    #[case("https:///a")]
    #[case("https://../a")]
    #[case("https://b.io:0x50/")]
    #[case("/a b")]
    #[case(&format!("/{}", "a".repeat(LIMIT)))]
    fn other_locations_are_refused(#[case] location: &str) {
        let base = Url::new(true, "r.io", "/v2/x");

        assert!(base.join(location).is_err());
    }

    #[rstest]
    #[case("https://r.io/", true)]
    #[case("https://R.io:443/x", true)]
    #[case("http://r.io/", false)]
    #[case("https://r.io:444/", false)]
    #[case("https://a.r.io/", false)]
    fn origin_is_scheme_host_and_port(#[case] other: &str, #[case] same: bool) {
        let url = Url::new(true, "r.io", "/v2/x");

        assert_eq!(url.has_origin_of(&Url::parse(other).unwrap()), same);
    }
}
