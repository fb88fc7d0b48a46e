// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's docker-registry on the loopback interface, with TLS by openssl and passwords by htpasswd, filled by skopeo.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use coracle_registry::{Options, Pulled, RegistryError};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tempfile::TempDir;

use super::image::Repository;
use super::{password, pull};

/// Programs without which nothing can be shown, and Debian's packages with them.
const PROGRAMS: [(&str, &str); 4] = [
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("openssl", "openssl"),
    ("htpasswd", "apache2-utils"),
];

/// Debian's packages that are missing here.
pub fn missing_packages() -> Vec<&'static str> {
    let is_there = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(program).exists())
    };
    PROGRAMS
        .into_iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| package)
        .collect()
}

/// A registry of its own, which ends with its test.
pub struct Registry {
    child: Child,
    _held: OwnedFd,
    pub port: u16,
    pub directory: TempDir,
    with_tls: bool,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A port on which a registry may listen, and nobody else as long as what is bound to it is open.
fn hold_a_port() -> (OwnedFd, u16) {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
    let socket = socket.unwrap();
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    rustix::net::bind(&socket, &any).unwrap();
    let bound = SocketAddrV4::try_from(rustix::net::getsockname(&socket).unwrap());
    (socket, bound.unwrap().port())
}

/// A certificate for 127.0.0.1 in `registry.crt` and `registry.key`, by the authority in `ca.crt`.
pub fn certify(directory: &Path) {
    let openssl = |arguments: &str| {
        run(Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(directory));
    };
    fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=authority"
    ));
    openssl(&format!(
        "req {key} -keyout registry.key -out registry.csr -subj /CN=registry"
    ));
    openssl(
        "x509 -req -in registry.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out registry.crt",
    );
}

impl Registry {
    pub fn without_tls() -> Self {
        Self::start(tempfile::tempdir().unwrap(), false, "")
    }

    /// With TLS and the password `hunter2` of `user`.
    pub fn with_tls() -> Self {
        let directory = tempfile::tempdir().unwrap();
        certify(directory.path());
        Self::start(directory, true, "")
    }

    pub fn start(directory: TempDir, with_tls: bool, certificate: &str) -> Self {
        let (held, port) = hold_a_port();
        let path = directory.path();
        let mut http = serde_json::json!({"addr": format!("127.0.0.1:{port}"), "secret": "test"});
        let mut config = serde_json::json!({"version": "0.1", "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": path.join("storage")}}});
        if with_tls {
            let certificate = match certificate {
                "" => "registry",
                other => other,
            };
            http["tls"] = serde_json::json!({"certificate": path.join(format!("{certificate}.crt")),
                "key": path.join(format!("{certificate}.key"))});
            let passwords = path.join("passwords");
            run(Command::new("htpasswd")
                .args(["-Bbc"])
                .arg(&passwords)
                .args(["user", "hunter2"]));
            config["auth"] = serde_json::json!({"htpasswd": {"realm": "test", "path": passwords}});
        }
        config["http"] = http;
        // JSON is YAML.
        fs::write(path.join("config.yml"), config.to_string()).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(path.join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self {
            child,
            _held: held,
            port,
            directory,
            with_tls,
        };
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(30), "no registry");
            thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Copies the layout's image `source` to `test:latest`.
    pub fn fill(&self, repository: &Repository, arguments: &[&str]) {
        let directory = tempfile::tempdir().unwrap();
        repository.write(directory.path(), "source");
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy"]).args(arguments);
        match self.with_tls {
            true => skopeo
                .args(["--dest-creds", "user:hunter2", "--dest-cert-dir"])
                .arg(self.certificates().path().join("certs.d").join(self.host())),
            false => skopeo.arg("--dest-tls-verify=false"),
        };
        run(skopeo
            .arg(format!("oci:{}:source", directory.path().display()))
            .arg(format!("docker://{}/test:latest", self.host())));
    }

    /// A directory whose `certs.d` trusts this registry's authority.
    pub fn certificates(&self) -> &TempDir {
        let own = self.directory.path().join("certs.d").join(self.host());
        if !own.exists() {
            fs::create_dir_all(&own).unwrap();
            fs::copy(self.directory.path().join("ca.crt"), own.join("ca.crt")).unwrap();
        }
        &self.directory
    }

    /// Options that trust this registry and know its password.
    pub fn options(&self) -> Options {
        let mut options = Options {
            certificate_directories: vec![self.certificates().path().join("certs.d")],
            ..Options::default()
        };
        options.credentials.insert(self.host(), password("hunter2"));
        options
    }

    pub fn pull(&self, options: Options) -> (TempDir, Result<Pulled, RegistryError>) {
        pull(options, &format!("{}/test", self.host()))
    }
}

/// Keeps digests as they are.
pub const EXACT: [&str; 1] = ["--preserve-digests"];
