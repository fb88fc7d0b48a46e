// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a container of an image is: its command, environment, user, directory and exit status.

use std::path::Path;
use std::process::Command;

use coracle_tests::{Host, image};
use rstest::rstest;

#[test]
fn output_of_the_command_is_ours() {
    let host = Host::new();

    let run = host
        .run(&["run", &image("busybox"), "echo", "hello"])
        .expect(0);

    assert_eq!(run.text(), "hello");
    assert_eq!(run.stderr, "");
    host.assert_clean();
}

#[test]
fn kernel_is_another_than_the_hosts() {
    let host = Host::new();

    let run = host
        .run(&[
            "run",
            &image("busybox"),
            "cat",
            "/proc/sys/kernel/random/boot_id",
        ])
        .expect(0);

    let ours = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(run.text().len(), ours.trim().len());
    assert_ne!(run.text(), ours.trim());
}

#[rstest]
#[case::zero("exit 0", 0)]
#[case::some("exit 3", 3)]
#[case::largest("exit 255", 255)]
#[case::killed("kill -KILL $$", 137)]
#[case::terminated_by_default("kill -TERM $$", 143)]
fn exit_status_comes_back(#[case] script: &str, #[case] status: i32) {
    let host = Host::new();
    // The first process of a PID namespace ignores most signals: a child of it takes them.
    let run = host.run(&[
        "run",
        &image("busybox"),
        "sh",
        "-c",
        "sh -c \"$0\"; exit $?",
        script,
    ]);

    run.expect(status);
    host.assert_clean();
}

#[test]
fn options_set_environment_user_and_directory() {
    let host = Host::new();
    let script = "echo $GREETING; echo $INHERITED; pwd; id -u; id -g";
    let busybox = image("busybox");
    let words = [
        "run",
        "-e",
        "GREETING=a b",
        "-e",
        "INHERITED",
        "-w",
        "/usr",
        "-u",
        "1234:5678",
        &busybox,
        "sh",
        "-c",
        script,
    ];
    let mut command = host.coracle(&words);
    command.env("INHERITED", "yes");

    let run = host.start(command).finish().expect(0);

    assert_eq!(run.text(), "a b\nyes\n/usr\n1234\n5678");
}

#[test]
fn image_configuration_is_honoured() {
    let host = Host::new();
    let layout = host.files().join("image");
    copy(Path::new(&image("busybox")), &layout);
    umoci(&[
        "config",
        "--image",
        &format!("{}:latest", layout.display()),
        "--tag",
        "configured",
        "--config.entrypoint",
        "/bin/sh",
        "--config.entrypoint",
        "-c",
        "--config.cmd",
        "echo $COLOUR; pwd; id -u",
        "--config.env",
        "COLOUR=green",
        "--config.workingdir",
        "/made/for/it",
        "--config.user",
        "42",
    ]);

    let run = host
        .run(&["run", &format!("{}:configured", layout.display())])
        .expect(0);

    assert_eq!(run.text(), "green\n/made/for/it\n42");
}

#[test]
fn container_has_its_own_process_ids_and_host_name() {
    let host = Host::new();

    let run = host
        .run(&[
            "run",
            &image("busybox"),
            "sh",
            "-c",
            "echo $$; hostname; ls -d /proc/[0-9]* | wc -l",
        ])
        .expect(0);

    let text = run.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "1");
    assert_eq!(
        lines[1].len(),
        12,
        "the run's name, by default: {}",
        lines[1]
    );
    assert!(
        lines[2].parse::<u32>().unwrap() <= 4,
        "only its own processes: {}",
        lines[2]
    );
}

#[test]
fn container_has_only_the_usual_capabilities() {
    let host = Host::new();

    let run = host
        .run(&[
            "run",
            &image("busybox"),
            "grep",
            "CapEff",
            "/proc/self/status",
        ])
        .expect(0);

    assert_eq!(run.text(), "CapEff:\t00000000a80425fb");
}

#[test]
fn memory_and_cpus_are_as_asked() {
    let host = Host::new();
    let script = "grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ {print $2}' /proc/meminfo";

    let run = host
        .run(&[
            "run",
            "--cpus",
            "2",
            "--memory",
            "512",
            &image("busybox"),
            "sh",
            "-c",
            script,
        ])
        .expect(0);

    let text = run.text();
    let (cpus, memory) = text.split_once('\n').unwrap();
    let mib = memory.parse::<u64>().unwrap() / 1024;
    assert_eq!(cpus, "2");
    assert!((420..512).contains(&mib), "{mib} MiB");
}

#[test]
fn tree_of_files_serves_as_root_and_is_never_written() {
    let host = Host::new();
    let tree = host.files().join("tree");
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", tree.join("bin/sh")).unwrap();
    let before = coracle_oci::tree_hash::tree_hash(&tree).unwrap();

    let run = host
        .run(&[
            "run",
            "--rootfs",
            tree.to_str().unwrap(),
            "/bin/sh",
            "-c",
            "echo new > /file; /bin/busybox cat /file",
        ])
        .expect(0);

    assert_eq!(run.text(), "new");
    assert_eq!(coracle_oci::tree_hash::tree_hash(&tree).unwrap(), before);
    host.assert_clean();
}

fn umoci(words: &[&str]) {
    let status = Command::new("umoci")
        .args(words)
        .status()
        .expect("umoci is installed");
    assert!(status.success(), "umoci {words:?}: {status}");
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-r")
        .arg(from)
        .arg(to)
        .status()
        .expect("cp is installed");
    assert!(status.success(), "cp: {status}");
}
