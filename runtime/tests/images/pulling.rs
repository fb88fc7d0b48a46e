// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pulls, by `coracle pull` and by `coracle run`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::Test;
use crate::host::{Host, image, image_of, layer};
use crate::registry::docker::{EXACT, Registry};
use crate::registry::image::{Repository, digest};
use crate::registry::server::{Reply, Request, Server};

pub const FROM_DOCKER: &[Test] = &[
    (
        "image_is_pulled_with_tls_and_password",
        image_is_pulled_with_tls_and_password,
    ),
    (
        "password_is_read_from_standard_input",
        password_is_read_from_standard_input,
    ),
    (
        "password_is_asked_for_and_not_shown",
        password_is_asked_for_and_not_shown,
    ),
    ("wrong_password_is_said", wrong_password_is_said),
    (
        "docker_archive_is_loaded_by_its_name",
        docker_archive_is_loaded_by_its_name,
    ),
];

pub const TESTS: &[Test] = &[
    ("unknown_image_is_said", unknown_image_is_said),
    (
        "nobody_can_be_asked_without_a_terminal",
        nobody_can_be_asked_without_a_terminal,
    ),
    (
        "terminal_of_a_pull_that_is_killed_is_given_back",
        terminal_of_a_pull_that_is_killed_is_given_back,
    ),
    (
        "interrupted_pull_leaves_nothing_half",
        interrupted_pull_leaves_nothing_half,
    ),
    (
        "what_is_there_is_not_pulled_again",
        what_is_there_is_not_pulled_again,
    ),
    ("damaged_layer_is_pulled_anew", damaged_layer_is_pulled_anew),
    (
        "layer_that_is_no_archive_is_said",
        layer_that_is_no_archive_is_said,
    ),
    ("terminal_shows_how_far_it_is", terminal_shows_how_far_it_is),
    (
        "terminal_shows_how_far_several_layers_are",
        terminal_shows_how_far_several_layers_are,
    ),
    (
        "terminal_shows_how_far_a_load_is",
        terminal_shows_how_far_a_load_is,
    ),
    (
        "what_passes_is_told_and_tried_again",
        what_passes_is_told_and_tried_again,
    ),
    (
        "what_does_not_pass_is_tried_as_often_as_the_file_says",
        what_does_not_pass_is_tried_as_often_as_the_file_says,
    ),
];

pub const OF_RUNS: &[Test] = &[
    ("run_pulls_what_is_missing", run_pulls_what_is_missing),
    (
        "run_pulls_nothing_if_it_may_not",
        run_pulls_nothing_if_it_may_not,
    ),
    (
        "run_pulls_what_has_changed_if_asked",
        run_pulls_what_has_changed_if_asked,
    ),
];

/// Words that trust the registry.
fn trusting(mut command: Command, registry: &Registry) -> Command {
    command.env("SSL_CERT_FILE", registry.directory.path().join("ca.crt"));
    command
}

fn filled() -> (Registry, String, String) {
    let registry = Registry::with_tls();
    registry.fill(&image("one"), &EXACT);
    let name = format!("{}/test", registry.host());
    let manifest = digest(&image("one").content["manifests/latest"].1);
    let printed = format!("{name}:latest@{manifest}\n");
    (registry, name, printed)
}

fn image_is_pulled_with_tls_and_password() {
    let (registry, name, printed) = filled();
    let host = Host::new();

    let command = host.command(&["pull", "-u", "user:hunter2", &name]);
    let output = trusting(command, &registry).output().unwrap();

    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        printed,
        "{stderr}"
    );
    // Begin and end, and nothing that steers a terminal.
    let begin = format!("pulling {name}:latest from {}", registry.host());
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!(lines[0], begin);
    assert!(
        lines[1].starts_with(&format!("pulled {name}:latest: ")),
        "{stderr}"
    );
    assert_eq!(lines.len(), 2, "{stderr}");
    assert_eq!(host.names(), [format!("{name}:latest")]);
    let unpacked = host.files("trees");
    assert!(
        unpacked.iter().any(|path| path.ends_with("rootfs/one")),
        "{unpacked:?}"
    );
    host.run(&["rmi", printed.trim_end()]).ok();
    assert!(host.names().is_empty());
    assert!(host.files("trees").is_empty() && host.files("blobs").is_empty());
}

fn password_is_read_from_standard_input() {
    let (registry, name, printed) = filled();
    let host = Host::new();
    let command = host.command(&["pull", "--creds", "user", "--password-stdin", &name]);

    let mut child = trusting(command, &registry)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hunter2\n").unwrap();
    let output = child.wait_with_output().unwrap();

    assert_eq!(String::from_utf8(output.stdout).unwrap(), printed);
}

/// Two ends of a terminal: ours, and the program's.
fn terminal() -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let path = ptsname(&ours, Vec::new()).unwrap();
    let path = path.into_string().unwrap();
    // Not this process's own terminal, which would end it by its end.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(path, flags, Mode::empty()).unwrap();
    (File::from(ours), theirs)
}

/// Reads what the program shows until it has shown `text`, or has ended.
fn read_until(ours: &mut File, text: &str) -> String {
    let mut shown = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let seen = String::from_utf8_lossy(&shown).into_owned();
        if seen.contains(text) {
            return seen;
        }
        match ours.read(&mut buffer) {
            Ok(count @ 1..) => shown.extend_from_slice(&buffer[..count]),
            _ => return seen,
        }
    }
}

fn password_is_asked_for_and_not_shown() {
    let (registry, name, printed) = filled();
    let host = Host::new();
    let (mut ours, theirs) = terminal();
    let command = host.command(&["pull", "-u", "user", &name]);
    let mut command = trusting(command, &registry);
    let mut child = command
        .stdin(theirs.try_clone().unwrap())
        .stderr(theirs)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Else this end never sees that the other has none left.
    drop(command);

    let asked = read_until(&mut ours, "Password of user: ");
    ours.write_all(b"hunter2\n").unwrap();
    let rest = read_until(&mut ours, "never shown");
    let mut stdout = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut stdout)
        .unwrap();

    assert!(child.wait().unwrap().success(), "{rest}");
    assert_eq!(stdout, printed);
    assert!(asked.ends_with("Password of user: "), "{asked}");
    assert!(!rest.contains("hunter2"), "{rest}");
}

fn terminal_of_a_pull_that_is_killed_is_given_back() {
    let host = Host::new();
    let (mut ours, theirs) = terminal();
    // Nobody is asked for the image before the user was for the password.
    let mut child = host
        .command(&["pull", "-u", "user", "localhost:1/test"])
        .stdin(theirs.try_clone().unwrap())
        .stderr(theirs.try_clone().unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let shows_typing = || {
        let modes = tcgetattr(&theirs).unwrap().local_modes;
        modes.contains(LocalModes::ECHO)
    };
    read_until(&mut ours, "Password of user: ");
    let before = shows_typing();

    child.kill().unwrap();
    child.wait().unwrap();

    let deadline = Instant::now() + Duration::from_secs(10);
    while !shows_typing() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((before, shows_typing()), (false, true));
}

fn wrong_password_is_said() {
    let (registry, name, _) = filled();
    let host = Host::new();

    let command = host.command(&["pull", "-u", "user:hunter3", &name]);
    let output = trusting(command, &registry).output().unwrap();

    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr.contains("status 401"), "{stderr}");
    assert!(!stderr.contains("hunter3"), "{stderr}");
    assert!(host.names().is_empty());
}

fn docker_archive_is_loaded_by_its_name() {
    let host = Host::new();
    let layout = host.layout("layout", &image("one"));
    let archive = host.path("one.tar");
    let archive = archive.to_str().unwrap();
    let copied = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "-q"])
        .arg(format!("oci:{layout}:latest"))
        .arg(format!("docker-archive:{archive}:example.org/one:1"))
        .status()
        .unwrap();
    assert!(copied.success());

    let loaded = host.run(&["load", archive]).ok();

    assert_eq!(loaded, "example.org/one:1\n");
    assert_eq!(host.names(), ["example.org/one:1"]);
}

fn unknown_image_is_said() {
    let server = Server::start(|_| Reply::fault(404, "MANIFEST_UNKNOWN", "manifest unknown"));
    let host = Host::new();

    let error = host.run(&["pull", "--insecure", &server.image()]).failed();

    assert!(
        error.contains(&format!(
            "coracle: cannot pull the image {0}:latest: registry {1} does not have image {0}:latest",
            server.image(),
            server.host()
        )),
        "{error}"
    );
}

fn nobody_can_be_asked_without_a_terminal() {
    let host = Host::new();

    let error = host
        .run(&["pull", "-u", "user", "localhost:1/test"])
        .failed();

    assert!(error.contains("--password-stdin"), "{error}");
}

/// A registry of this image alone, which replies otherwise where `otherwise` does.
pub fn serve(
    image: Repository,
    otherwise: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    Server::start(move |request| match request.path.as_str() {
        "/v2/" => Reply::new(200, "{}"),
        _ => otherwise(request).unwrap_or_else(|| image.reply(request)),
    })
}

pub fn is_layer(image: &Repository, request: &Request) -> bool {
    let key = request.path.strip_prefix("/v2/test/").unwrap_or_default();
    let content = image.content.get(key).map(|(_, content)| content);
    content.is_some_and(|content| !content.starts_with(b"{"))
}

fn interrupted_pull_leaves_nothing_half() {
    let image = image_of("one", &[7; 100_000]);
    let stalled = image.clone();
    let server = serve(image, move |request| {
        is_layer(&stalled, request).then(|| stalled.reply(request).stall(50_000))
    });
    let host = Host::new();
    let mut child = host
        .command(&["pull", &server.image()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let half = || {
        let files = host.path("root/images/tmp");
        let sizes = fs::read_dir(files).into_iter().flatten().flatten();
        sizes
            .map(|file| file.metadata().map_or(0, |file| file.len()))
            .sum::<u64>()
    };
    while half() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing comes");
        thread::sleep(Duration::from_millis(10));
    }

    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let status = child.wait().unwrap();

    assert!(!status.success());
    // Whoever looks next tidies up.
    assert!(host.names().is_empty());
    assert!(host.files("tmp").is_empty());
}

fn what_is_there_is_not_pulled_again() {
    let repository = image("one");
    let own = repository.clone();
    let server = serve(repository, |_| None);
    let host = Host::new();
    host.run(&["pull", &server.image()]).ok();

    host.run(&["pull", &server.image()]).ok();

    let layers = server.requests();
    let layers = layers.iter().filter(|request| is_layer(&own, request));
    assert_eq!(layers.count(), 1);
}

fn damaged_layer_is_pulled_anew() {
    // Too large to be read each time.
    let repository = image_of("one", &[7; 5 << 20]);
    let own = repository.clone();
    let server = serve(repository, |_| None);
    let host = Host::new();
    host.run(&["pull", &server.image()]).ok();
    let blobs = host.files("blobs");
    let layer = blobs
        .iter()
        .max_by_key(|blob| blob.metadata().unwrap().len());
    let layer = File::options().write(true).open(layer.unwrap()).unwrap();
    layer.write_all_at(b"damaged", 1 << 20).unwrap();
    fs::remove_dir_all(host.path("root/images/trees/sha256")).unwrap();

    host.run(&["pull", &server.image()]).ok();

    let layers = server.requests();
    let layers = layers.iter().filter(|request| is_layer(&own, request));
    assert_eq!(layers.count(), 2);
    let unpacked = host.files("trees");
    assert!(unpacked.iter().any(|path| path.ends_with("rootfs/one")));
}

fn layer_that_is_no_archive_is_said() {
    let server = serve(Repository::with_image(&[vec![7; 2000]]), |_| None);
    let host = Host::new();

    let error = host.run(&["pull", &server.image()]).failed();

    let expected = format!("cannot unpack the image {}:latest: ", server.image());
    assert!(error.contains(&expected), "{error}");
    assert!(host.files("trees").is_empty() && host.files("tmp").is_empty());
}

fn terminal_shows_how_far_it_is() {
    let image = image_of("one", &[7; 1500]);
    let slow = image.clone();
    let server = serve(image, move |request| {
        let pause = Duration::from_micros(100);
        is_layer(&slow, request).then(|| slow.reply(request).trickle(pause))
    });
    let host = Host::new();
    let (mut ours, theirs) = terminal();
    let mut command = host.command(&["pull", &server.image()]);
    let mut child = command
        .stderr(theirs)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    drop(command);

    let shown = read_until(&mut ours, "never shown");

    assert!(child.wait().unwrap().success(), "{shown}");
    assert!(shown.contains("\r\x1b[Kpulling: "), "{shown:?}");
    assert!(shown.contains(" of 1 layers, "), "{shown:?}");
    // The line is gone when it has served.
    let end = format!("\r\x1b[Kpulled {}:latest: 3.0 KiB\r\n", server.image());
    assert!(shown.contains(&end), "{shown:?}");
}

fn terminal_shows_how_far_several_layers_are() {
    let names = |start: u32| (start..start + 10_000).map(|number| format!("{number}"));
    let many = |start| {
        layer(
            &names(start)
                .map(|name| (name, &b""[..]))
                .collect::<Vec<_>>(),
        )
    };
    let small = layer(&[("small", &[7; 1500][..])]);
    let image = Repository::with_image(&[many(0), small.clone(), many(10_000)]);
    let slow = image.clone();
    let server = serve(image, move |request| {
        let pause = Duration::from_micros(100);
        let is_small = request.path.ends_with(&digest(&small).to_string());
        is_small.then(|| slow.reply(request).trickle(pause))
    });
    let host = Host::new();
    let (mut ours, theirs) = terminal();
    let mut command = host.command(&["pull", &server.image()]);
    let mut child = command
        .stderr(theirs)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    drop(command);

    let shown = read_until(&mut ours, "never shown");

    assert!(child.wait().unwrap().success(), "{shown}");
    for what in ["\r\x1b[Kpulling: ", "\r\x1b[Kunpacking: "] {
        let lines: Vec<_> = shown.split(what).skip(1).collect();
        assert!(!lines.is_empty(), "{what:?} is not in {shown:?}");
        let of = |line: &&str| line.contains(" MiB, ") && line.contains(" of 3 layers, ");
        assert!(lines.iter().all(of), "{lines:?}");
    }
    assert!(shown.ends_with("\r\x1b[K"), "{shown:?}");
}

fn terminal_shows_how_far_a_load_is() {
    let host = Host::new();
    let layout = host.layout("layout", &image_of("one", &vec![7; 256 << 20]));
    let (mut ours, theirs) = terminal();
    let mut command = host.command(&["load", &layout, "one"]);
    let mut child = command
        .stderr(theirs)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    drop(command);

    let shown = read_until(&mut ours, "never shown");

    assert!(child.wait().unwrap().success(), "{shown}");
    let lines: Vec<_> = shown.split("\r\x1b[Kcopying: ").skip(1).collect();
    assert!(!lines.is_empty(), "{shown:?}");
    let of = |line: &&str| line.contains(" of 256.0 MiB, ") && line.contains(" of 1 layers, ");
    assert!(lines.iter().all(of), "{lines:?}");
    assert!(shown.ends_with("\r\x1b[K"), "{shown:?}");
}

fn what_passes_is_told_and_tried_again() {
    let image = image_of("one", &[7; 100_000]);
    let own = image.clone();
    let faults: [(&str, Fault); 3] = [
        ("status 429", |_, _| {
            Reply::fault(429, "TOOMANYREQUESTS", "")
        }),
        ("status 500", |_, _| Reply::fault(500, "", "")),
        ("was cut", |image, request| image.reply(request).cut(1_000)),
    ];
    for (says, fault) in faults {
        let own = own.clone();
        let server = serve(image.clone(), move |request| {
            let is_first = request.earlier == 0 && is_layer(&own, request);
            is_first.then(|| fault(&own, request))
        });
        let host = Host::new();

        let output = host.command(&["pull", &server.image()]).output().unwrap();

        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        let lines: Vec<_> = stderr.lines().collect();
        assert_eq!(lines.len(), 3, "{stderr}");
        assert!(
            lines[1].contains(says) && lines[1].contains("; trying again in 0."),
            "{stderr}"
        );
        assert_eq!(server.requests_of("/blobs/").len(), 3, "{says}");
    }
}

/// What a registry replies of an image at first.
type Fault = fn(&Repository, &Request) -> Reply;

fn what_does_not_pass_is_tried_as_often_as_the_file_says() {
    let server = serve(image("one"), |_| Some(Reply::fault(503, "", "later")));
    let host = Host::new();
    let config = host.path("config.toml");
    fs::write(&config, "[registry]\ntries = 2\n").unwrap();

    let output = host
        .command(&["pull", &server.image()])
        .env("CORACLE_CONFIG", config)
        .output()
        .unwrap();

    let stderr = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert_eq!(lines.len(), 3, "{stderr}");
    assert!(lines[1].contains("trying again in "), "{stderr}");
    assert!(
        lines[2].starts_with("coracle: cannot pull the image ")
            && lines[2].contains("gave up after 2 tries")
            && lines[2].contains("status 503"),
        "{stderr}"
    );
    assert_eq!(server.requests_of("/manifests/latest").len(), 2);
    assert!(host.names().is_empty() && host.files("tmp").is_empty());
}

/// A run that comes no further than to its guest, which is none.
pub fn try_to_run(host: &Host, pull: &[&str], image: &str) -> String {
    let nothing = host.path("kernel");
    fs::write(&nothing, "no kernel").unwrap();
    let nothing = nothing.to_str().unwrap();
    let run = [
        "run",
        "--rm",
        "--network",
        "none",
        "--kernel",
        nothing,
        "--initrd",
        nothing,
    ];
    let words = [&run, pull, &[image, "true"]].concat();
    host.run(&words).failed()
}

fn run_pulls_what_is_missing() {
    let server = serve(image("one"), |_| None);
    let host = Host::new();

    let first = try_to_run(&host, &[], &server.image());
    let second = try_to_run(&host, &[], &server.image());

    assert!(first.contains("pulled "), "{first}");
    assert!(!second.contains("pulled "), "{second}");
    assert_eq!(host.names(), [format!("{}:latest", server.image())]);
}

fn run_pulls_nothing_if_it_may_not() {
    let host = Host::new();

    let error = try_to_run(&host, &["--pull", "never"], "localhost:1/test");

    assert_eq!(
        error,
        "coracle: there is no image localhost:1/test:latest in the store (coracle pull localhost:1/test:latest gets it)\n"
    );
}

fn run_pulls_what_has_changed_if_asked() {
    let server = serve(image("one"), |_| None);
    let host = Host::new();
    let layout = host.layout("layout", &image("two"));
    host.run(&["load", &layout, &server.image()]).ok();

    try_to_run(&host, &["--pull", "always"], &server.image());

    let manifest = digest(&image("one").content["manifests/latest"].1);
    let listed = host.run(&["images"]).ok();
    assert!(listed.contains(&manifest.hex()[..12]), "{listed}");
}
