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

    /// The address that a `Location` header at this one names, which can be a relative one (RFC 9110, 10.2.2).
    pub(crate) fn join(&self, location: &str) -> Result<Self, &'static str> {
        let scheme = if self.tls { "https" } else { "http" };
        if location.starts_with("//") {
            Self::parse(&format!("{scheme}:{location}"))
        } else if location.starts_with('/') {
            Self::parse(&format!("{scheme}://{}{location}", self.authority))
        } else if has_scheme(location) {
            Self::parse(location)
        } else {
            let path = self.resolve(location)?;
            Self::parse(&format!("{scheme}://{}{path}", self.authority))
        }
    }

    /// The path and query that a reference without a host, whose path is none from the root, leads to (RFC 3986, 5.2).
    fn resolve(&self, reference: &str) -> Result<String, &'static str> {
        let reference = reference.split('#').next().unwrap_or_default();
        let base = self.path.split('?').next().unwrap_or_default();
        let (path, query) = reference.split_at(reference.find('?').unwrap_or(reference.len()));
        match (path, query) {
            ("", "") => return Err("the address is empty"),
            ("", query) => return Ok(format!("{base}{query}")),
            _ => {}
        }
        let mut segments: Vec<&str> = base.split('/').skip(1).collect();
        // What is named is beside the last one.
        segments.pop();
        let mut is_directory = false;
        for segment in path.split('/') {
            is_directory = matches!(segment, "" | "." | "..");
            match segment {
                "." => {}
                ".." => drop(segments.pop()),
                segment => segments.push(segment),
            }
        }
        if is_directory && segments.last().is_some_and(|last| !last.is_empty()) {
            segments.push("");
        }
        Ok(format!("/{}{query}", segments.join("/")))
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

/// Whether a reference starts with a scheme (RFC 3986, 3.1).
fn has_scheme(reference: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    reference
        .split_once(':')
        .is_some_and(|(scheme, _)| scheme.bytes().all(is_part))
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
    #[case::beside("blob?sig=a/b", "https://r.io:5000/v2/blob?sig=a/b")]
    #[case::below("./a/b/", "https://r.io:5000/v2/a/b/")]
    #[case::above("../blob", "https://r.io:5000/blob")]
    #[case::above_all("../../../a", "https://r.io:5000/a")]
    #[case::directory("..", "https://r.io:5000/")]
    #[case::query_alone("?b=c", "https://r.io:5000/v2/x?b=c")]
    #[case::colon_later("a/b:c", "https://r.io:5000/v2/a/b:c")]
    #[case::colon_in_the_query("a?b:c", "https://r.io:5000/v2/a?b:c")]
    fn location_is_joined(#[case] location: &str, #[case] expected: &str) {
        let base = Url::new(true, "r.io:5000", "/v2/x?old=/1");

        assert_eq!(base.join(location).unwrap().full(), expected);
    }

    #[rstest]
    #[case("")]
    #[case("#fragment")]
    #[case("a b")]
    #[case("file:///etc/passwd")]
    #[case("file:a")]
    #[case("r.io:5000/a")]
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
