// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pulls from Debian's docker-registry, with TLS by openssl and passwords by htpasswd, filled by skopeo. Where one of
//! these is missing, the tests are counted as ignored.

mod common;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::docker::{EXACT, Registry, certify, missing_packages};
use common::image::{INDEX, MANIFEST, Repository, digest};
use common::{password, pull, whole};
use coracle_oci::image::Source;
use coracle_registry::{Options, Retry};
use libtest_mimic::{Arguments, Trial};
use tempfile::TempDir;

const TESTS: &[(&str, fn())] = &[
    ("image_is_pulled_without_tls", image_is_pulled_without_tls),
    (
        "image_is_pulled_with_tls_and_password",
        image_is_pulled_with_tls_and_password,
    ),
    (
        "authority_of_all_registries_is_trusted",
        authority_of_all_registries_is_trusted,
    ),
    ("docker_manifest_is_pulled", docker_manifest_is_pulled),
    ("index_is_pulled", index_is_pulled),
    ("cut_blob_goes_on", cut_blob_goes_on),
    ("unknown_tag_is_said", unknown_tag_is_said),
    ("unknown_authority_is_said", unknown_authority_is_said),
    (
        "certificate_for_another_name_is_said",
        certificate_for_another_name_is_said,
    ),
    (
        "authority_as_certificate_is_said",
        authority_as_certificate_is_said,
    ),
    ("wrong_password_is_said", wrong_password_is_said),
    ("missing_password_is_said", missing_password_is_said),
];

fn main() -> ExitCode {
    let missing = missing_packages();
    if !missing.is_empty() {
        eprintln!("ignored without Debian's packages {}", missing.join(", "));
    }
    let trials = TESTS
        .iter()
        .map(|&(name, test)| {
            Trial::test(name, move || {
                test();
                Ok(())
            })
            .with_ignored_flag(!missing.is_empty())
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn repository() -> Repository {
    Repository::with_image(&[layer(), b"second layer".to_vec(), Vec::new()])
}

/// More than a connection's buffers hold.
fn layer() -> Vec<u8> {
    (0..8_000_000_u32)
        .map(|number| (number.wrapping_mul(number) >> 7) as u8)
        .collect()
}

fn assert_whole(directory: &TempDir) {
    let source = Source::open(directory.path()).unwrap();
    let image = source.image(Some("pulled")).unwrap();
    assert_eq!(image.layers.len(), 3);
    for layer in &image.layers {
        // The reader checks digest and size.
        let mut blob = source.blob(&layer.descriptor, "layer").unwrap();
        io::copy(&mut blob, &mut io::sink()).unwrap();
    }
}

fn image_is_pulled_without_tls() {
    let registry = Registry::without_tls();
    let repository = repository();
    registry.fill(&repository, &EXACT);

    let (directory, result) = registry.pull(Options::default());

    let expected = digest(&repository.content["manifests/latest"].1);
    assert_eq!(result.unwrap().image.digest, expected);
    assert_whole(&directory);
}

fn image_is_pulled_with_tls_and_password() {
    let registry = Registry::with_tls();
    registry.fill(&repository(), &EXACT);

    let (directory, result) = registry.pull(registry.options());

    result.unwrap();
    assert_whole(&directory);
}

fn authority_of_all_registries_is_trusted() {
    let registry = Registry::with_tls();
    registry.fill(&repository(), &EXACT);

    let (directory, result) = registry.pull(Options {
        certificate_directories: vec![],
        certificate_files: vec![registry.directory.path().join("ca.crt")],
        ..registry.options()
    });

    result.unwrap();
    assert_whole(&directory);
}

fn docker_manifest_is_pulled() {
    let registry = Registry::without_tls();
    registry.fill(&repository(), &["--format", "v2s2"]);

    let (directory, result) = registry.pull(Options::default());

    assert_eq!(
        result.unwrap().manifest.media_type,
        "application/vnd.docker.distribution.manifest.v2+json"
    );
    assert_whole(&directory);
}

fn index_is_pulled() {
    let registry = Registry::without_tls();
    let mut repository = repository();
    let ours = repository.content["manifests/latest"].1.clone();
    let other = repository.add_image("arm64", &[b"other".to_vec()]);
    let index = repository.add_index(&[("arm64", MANIFEST, &other), ("amd64", MANIFEST, &ours)]);
    repository.tag("latest", INDEX, &index);
    registry.fill(&repository, &["--all", "--preserve-digests"]);

    let (directory, result) = registry.pull(Options::default());

    let pulled = result.unwrap();
    assert_eq!(pulled.image.digest, digest(&index));
    assert_eq!(pulled.manifest.digest, digest(&ours));
    assert_whole(&directory);
}

/// Passes connections on to a registry, and cuts the first that answers with more than a manifest.
fn cutting(registry: &Registry) -> SocketAddr {
    static HAS_CUT: AtomicBool = AtomicBool::new(false);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let port = registry.port;
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut from, &mut to));
            thread::spawn(move || {
                let (mut client, mut server) = (client, server);
                let mut buffer = vec![0; 64 << 10];
                let mut total = 0;
                while let Ok(count @ 1..) = server.read(&mut buffer) {
                    total += count;
                    if total > 1_000_000 && !HAS_CUT.swap(true, Ordering::SeqCst) {
                        break;
                    }
                    if client.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

fn cut_blob_goes_on() {
    let registry = Registry::without_tls();
    registry.fill(&repository(), &EXACT);
    let address = cutting(&registry);
    let options = Options {
        insecure: vec![address.to_string()],
        retry: Retry {
            tries: 2,
            ..Retry::default()
        },
        ..Options::default()
    };

    let (directory, result) = pull(options, &format!("{address}/test"));

    result.unwrap();
    assert_whole(&directory);
}

fn unknown_tag_is_said() {
    let registry = Registry::without_tls();

    let (_directory, result) = registry.pull(Options::default());

    let error = whole(&result.unwrap_err());
    assert!(
        error.contains(&format!(
            "does not have image {}/test:latest",
            registry.host()
        )),
        "{error}"
    );
    assert!(error.contains("MANIFEST_UNKNOWN"), "{error}");
}

fn unknown_authority_is_said() {
    let registry = Registry::with_tls();

    let (_directory, result) = registry.pull(Options {
        certificate_directories: vec![],
        ..registry.options()
    });

    let error = whole(&result.unwrap_err());
    assert!(
        error.starts_with(&format!("no TLS connection to {}: ", registry.host())),
        "{error}"
    );
    assert!(
        error.contains(&format!("/etc/docker/certs.d/{}/ca.crt", registry.host())),
        "{error}"
    );
}

fn certificate_for_another_name_is_said() {
    let registry = Registry::with_tls();
    let options = Options {
        certificate_files: vec![registry.directory.path().join("ca.crt")],
        ..registry.options()
    };

    let (_directory, result) = pull(options, &format!("localhost:{}/test", registry.port));

    let error = whole(&result.unwrap_err());
    assert!(
        error.ends_with("its certificate is for another name"),
        "{error}"
    );
}

fn authority_as_certificate_is_said() {
    let directory = tempfile::tempdir().unwrap();
    certify(directory.path());
    let registry = Registry::start(directory, true, "ca");

    let (_directory, result) = registry.pull(registry.options());

    let error = whole(&result.unwrap_err());
    assert!(error.contains("is an authority's own"), "{error}");
}

fn wrong_password_is_said() {
    let registry = Registry::with_tls();
    let mut options = registry.options();
    options
        .credentials
        .insert(registry.host(), password("hunter3"));

    let (_directory, result) = registry.pull(options);

    let error = whole(&result.unwrap_err());
    assert!(error.contains("status 401, UNAUTHORIZED"), "{error}");
    assert!(error.ends_with("with the given credentials"), "{error}");
}

fn missing_password_is_said() {
    let registry = Registry::with_tls();
    let options = Options {
        credentials: Default::default(),
        ..registry.options()
    };

    let (_directory, result) = registry.pull(options);

    let error = whole(&result.unwrap_err());
    assert!(
        error.ends_with("it was asked without credentials"),
        "{error}"
    );
}
