// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a container of an image is: its command, environment, user, directory and exit status.

use std::fs;
use std::os::unix::fs::symlink;

use coracle_tests::tools::fingerprint;
use coracle_tests::{Host, Image};
use rstest::rstest;

#[rstest]
fn output_of_the_command_is_ours(#[values(Image::BUSYBOX, Image::DEBIAN)] image: Image) {
    let host = Host::with_shared_images();

    let run = host.container(image).command(["echo", "hello"]).expect(0);

    assert_eq!(run.text(), "hello");
    assert_eq!(run.stderr, "");
    host.assert_clean();
}

#[test]
fn kernel_is_another_than_the_hosts() {
    const BOOT: &str = "/proc/sys/kernel/random/boot_id";
    let host = Host::with_shared_images();

    let run = host
        .container(Image::BUSYBOX)
        .command(["cat", BOOT])
        .expect(0);

    let ours = fs::read_to_string(BOOT).unwrap();
    assert_eq!(run.text().len(), ours.trim().len());
    assert_ne!(run.text(), ours.trim());
}

#[rstest]
#[case::zero("exit 0", 0)]
#[case::some("exit 3", 3)]
#[case::largest("exit 255", 255)]
#[case::killed("kill -KILL $$", 137)]
#[case::terminated_by_default("kill -TERM $$", 143)]
fn exit_status_comes_back(
    #[case] script: &str,
    #[case] status: i32,
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();
    // The first process of a PID namespace ignores most signals: a child of it takes them.
    let child = ["sh", "-c", "sh -c \"$0\"; exit $?", script];

    host.container(image).command(child).expect(status);

    host.assert_clean();
}

#[rstest]
fn options_set_environment_user_and_directory(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();

    let run = host
        .container(image)
        .variable("INHERITED", "yes")
        .env("GREETING=a b")
        .env("INHERITED")
        .workdir("/usr")
        .user("1234:5678")
        .shell("echo $GREETING; echo $INHERITED; pwd; id -u; id -g")
        .expect(0);

    assert_eq!(run.text(), "a b\nyes\n/usr\n1234\n5678");
}

#[rstest]
fn image_configuration_is_honoured(#[values(Image::BUSYBOX, Image::DEBIAN)] image: Image) {
    let host = Host::with_shared_images();
    let layout = image.copy_to(&host);
    layout.configure(&[
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

    let run = host.container(layout).expect(0);

    assert_eq!(run.text(), "green\n/made/for/it\n42");
}

#[rstest]
fn container_has_its_own_process_ids_and_host_name(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();

    let run = host
        .container(image)
        .shell("echo $$; hostname; ls -d /proc/[0-9]* | wc -l")
        .expect(0);

    let text = run.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "1");
    assert_eq!(lines[1].len(), 12, "the run's name: {}", lines[1]);
    let processes: u32 = lines[2].parse().unwrap();
    assert!(processes <= 4, "only its own processes: {processes}");
}

#[rstest]
fn container_has_only_the_usual_capabilities(
    #[values(Image::BUSYBOX, Image::DEBIAN)] image: Image,
) {
    let host = Host::with_shared_images();

    let run = host
        .container(image)
        .command(["grep", "CapEff", "/proc/self/status"])
        .expect(0);

    assert_eq!(run.text(), "CapEff:\t00000000a80425fb");
}

#[rstest]
fn memory_and_cpus_are_as_asked(#[values(Image::BUSYBOX, Image::DEBIAN)] image: Image) {
    let host = Host::with_shared_images();

    let run = host
        .container(image)
        .cpus(2)
        .memory(512)
        .shell("grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ {print $2}' /proc/meminfo")
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
    let tree = host.folder("tree");
    fs::create_dir(tree.join("bin")).unwrap();
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    symlink("busybox", tree.join("bin/sh")).unwrap();
    let before = fingerprint(&tree);

    let run = host
        .container_on(&tree)
        .shell("echo new > /file; /bin/busybox cat /file")
        .expect(0);

    assert_eq!(run.text(), "new");
    assert_eq!(fingerprint(&tree), before);
    host.assert_clean();
}
