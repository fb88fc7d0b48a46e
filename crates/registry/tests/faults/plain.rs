// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registries of this machine that are without TLS, or are taken to be.

use std::net::TcpListener;

use coracle_registry::Options;
use coracle_registry::credentials::Credentials;
use rstest::rstest;

use crate::common::server::{Reply, Server};
use crate::common::{password, pull, quick, whole};
use crate::ground::{layers_of, serve_but};

#[test]
fn registry_on_this_machine_may_be_without_tls() {
    let (server, _) = serve_but(|_| None);

    let (directory, result) = pull(quick(), &server.image());

    result.unwrap();
    assert_eq!(layers_of(&directory), 1);
}

#[test]
fn registry_with_an_authority_of_its_own_is_asked_with_tls_alone() {
    let (server, _) = serve_but(|_| None);
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join(server.host());
    std::fs::create_dir(&own).unwrap();
    let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    std::fs::write(own.join("ca.crt"), pem).unwrap();
    let options = Options {
        certificate_directories: vec![directory.path().to_owned()],
        ..quick()
    };

    let (_directory, result) = pull(options, &server.image());

    assert!(result.is_err());
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn registry_on_this_machine_that_stalls_is_not_asked_without_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();

    let (_directory, result) = pull(quick(), &format!("{host}/test"));

    let error = whole(&result.unwrap_err());
    assert!(error.contains("its API"), "{error}");
}

#[rstest]
#[case::password("Basic realm=\"r\"", password("hunter2"))]
#[case::token("Bearer realm=\"REALM\"", Credentials::RegistryToken("hunter2".into()))]
#[case::identity("Bearer realm=\"REALM\"", Credentials::IdentityToken("hunter2".into()))]
fn who_is_found_without_tls_is_shown_nothing(
    #[case] challenge: &'static str,
    #[case] credentials: Credentials,
) {
    // Anybody on this machine can serve a port that the registry does not.
    let server = Server::start(move |request| {
        let realm = format!("http://{}/token", request.header("host").unwrap());
        Reply::challenge(&challenge.replace("REALM", &realm))
    });
    let mut options = quick();
    options.credentials.insert(server.host(), credentials);

    let (_directory, result) = pull(options, &server.image());

    let error = whole(&result.unwrap_err());
    assert!(
        error.contains("without credentials, since it has no TLS, and is not listed as insecure"),
        "{error}"
    );
    for request in server.requests() {
        assert_eq!(request.header("authorization"), None);
        assert!(!request.body.contains("hunter2"), "{request:?}");
    }
}
