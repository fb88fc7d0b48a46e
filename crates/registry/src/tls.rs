// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whom registries may be certified by: the host's authorities, those given, and a registry's own.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls::{CertificateError, Error as TlsError};
use ureq::tls::{Certificate, PemItem, parse_pem};

use crate::error::RegistryError;
use crate::host;
use crate::options::Options;

/// Most bytes of a file with certificates; the host's whole bundle has a quarter of this.
const FILE_LIMIT: u64 = 1 << 20;

/// The host's authorities, and those of [`Options::certificate_files`].
pub(crate) fn common(options: &Options) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let host = rustls_native_certs::load_native_certs();
    for error in &host.errors {
        tracing::debug!("an authority of this host is left out: {error}");
    }
    let mut roots: Vec<_> = host
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    for path in &options.certificate_files {
        roots.extend(read(path)?);
    }
    Ok(roots)
}

/// A registry's own authorities: `HOST[:PORT]/*.crt` in each of [`Options::certificate_directories`].
pub(crate) fn own(
    options: &Options,
    authority: &str,
) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let mut roots = Vec::new();
    // It becomes a path, and can come from a redirect.
    if !host::is_valid(authority) {
        return Ok(roots);
    }
    for directory in &options.certificate_directories {
        for path in certificate_files(&directory.join(authority))? {
            roots.extend(read(&path)?);
        }
    }
    Ok(roots)
}

fn certificate_files(directory: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let refuse = |error: io::Error| RegistryError::Certificate {
        path: directory.to_owned(),
        reason: error.to_string(),
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(refuse(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(refuse)?.path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let refuse = |reason: String| RegistryError::Certificate {
        path: path.to_owned(),
        reason,
    };
    let mut pem = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut pem))
        .map_err(|error| refuse(error.to_string()))?;
    if pem.len() as u64 > FILE_LIMIT {
        return Err(refuse(format!("it has more than {FILE_LIMIT} bytes")));
    }
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(refuse(error.to_string())),
        }
    }
    if certificates.is_empty() {
        return Err(refuse("it holds no certificate in PEM".to_owned()));
    }
    Ok(certificates)
}

/// Why a handshake failed, and what can be done about it.
pub(crate) fn reason(error: &TlsError, authority: &str) -> String {
    let TlsError::InvalidCertificate(fault) = error else {
        return error.to_string();
    };
    match fault {
        CertificateError::UnknownIssuer => format!(
            "its certificate is not signed by an authority that this host trusts; a registry's own authority goes into \
             a file `/etc/docker/certs.d/{authority}/ca.crt`"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; is this host's clock right?".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name".to_owned()
        }
        CertificateError::Revoked => "its certificate was revoked".to_owned(),
        // The library has no name for this one.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "its certificate is an authority's own (`CA:TRUE`), which proves no server; have the authority sign one for \
             the server"
                .to_owned()
        }
        other => format!("its certificate is refused: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn registry_without_a_directory_has_no_authorities_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            certificate_directories: vec![directory.path().to_owned()],
            ..Options::default()
        };

        assert!(own(&options, "a.io:5000").unwrap().is_empty());
        assert!(own(&options, "..").unwrap().is_empty());
    }

    #[rstest]
    #[case::no_pem("hello", "holds no certificate")]
    #[case::broken(
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        "ca.crt"
    )]
    fn file_without_a_certificate_is_refused(#[case] content: &str, #[case] message: &str) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("a.io")).unwrap();
        fs::write(directory.path().join("a.io/ca.crt"), content).unwrap();
        let options = Options {
            certificate_directories: vec![directory.path().to_owned()],
            ..Options::default()
        };

        let error = own(&options, "a.io").unwrap_err().to_string();

        assert!(error.contains(message), "{error}");
    }

    #[rstest]
    #[case(
        CertificateError::UnknownIssuer,
        "/etc/docker/certs.d/a.io:5000/ca.crt"
    )]
    #[case(CertificateError::Expired, "has expired")]
    #[case(CertificateError::NotValidYet, "clock")]
    #[case(CertificateError::NotValidForName, "for another name")]
    #[case(CertificateError::BadEncoding, "is refused")]
    fn refused_certificate_is_explained(#[case] fault: CertificateError, #[case] message: &str) {
        let text = reason(&TlsError::InvalidCertificate(fault), "a.io:5000");

        assert!(text.contains(message), "{text}");
    }
}
