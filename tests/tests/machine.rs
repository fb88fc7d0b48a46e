// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What machines are made of, and the tools that people use on them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coracle_tests::{Host, Image, Terminal, guests, path_from_environment};
use rstest::rstest;
use ruzstd::encoding::CompressionLevel;

/// Runs a tool of the host.
#[track_caller]
fn tool(words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", words[0]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {text}{errors}");
    text
}

#[rstest]
#[case(1)]
#[case(2)]
#[case(8)]
#[case(16)]
#[case(32)]
fn machine_has_the_processors_that_were_asked_for(#[case] cpus: u8) {
    let host = Host::with_shared_images();

    let run = host
        .container(Image::BUSYBOX)
        .cpus(cpus)
        .shell("nproc; cat /sys/devices/system/cpu/online")
        .expect(0);

    let online = match cpus {
        1 => "0".to_owned(),
        more => format!("0-{}", more - 1),
    };
    assert_eq!(run.text(), format!("{cpus}\n{online}"));
}

/// A disk image with an ext4 file system on it, which holds a file.
fn ext4(host: &Host) -> PathBuf {
    let tree = host.folder("tree");
    fs::write(tree.join("hello"), "from the disk\n").unwrap();
    let image = host.file("disk.img", "");
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    tool(&["mkfs.ext4", "-q", "-d", &text(&tree), &text(&image)]);
    image
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[rstest]
#[case::found_out("")]
#[case::named(":fs=ext4")]
fn file_system_of_a_disk_is_a_volume(#[case] options: &str) {
    let host = Host::with_shared_images();
    let disk = ext4(&host);
    let run = |script: &str| {
        host.container(Image::BUSYBOX)
            .option("--disk", format!("{}:/data{options}", text(&disk)))
            .shell(script)
            .expect(0)
            .text()
    };

    let first = run("cat /data/hello; echo kept >/data/new");
    let second = run("cat /data/new");

    assert_eq!((first.as_str(), second.as_str()), ("from the disk", "kept"));
    tool(&["e2fsck", "-fn", &text(&disk)]);
    host.assert_clean();
}

#[test]
fn read_only_disk_is_not_written() {
    let host = Host::with_shared_images();
    let disk = ext4(&host);
    let before = fs::read(&disk).unwrap();

    let run = host
        .container(Image::BUSYBOX)
        .option("--disk", format!("{}:/data:ro", text(&disk)))
        .shell("cat /data/hello; echo x >/data/new && echo written")
        .finish();

    assert_eq!(run.text(), "from the disk", "{}", run.stderr);
    assert!(fs::read(&disk).unwrap() == before, "the image is as it was");
}

#[test]
fn disk_below_dev_is_a_device_and_the_only_one() {
    let host = Host::with_shared_images();
    let disk = host.file("disk.img", vec![0; 1 << 20]);

    let run = host
        .container(Image::BUSYBOX)
        .option("--disk", format!("{}:/dev/xvda", text(&disk)))
        .shell("echo raw | dd of=/dev/xvda conv=notrunc 2>/dev/null; test -b /dev/xvda && blockdev --getsize64 /dev/xvda; sync")
        .expect(0);

    assert_eq!(run.text(), "1048576");
    assert!(fs::read(&disk).unwrap().starts_with(b"raw\n"));
    host.assert_clean();
}

#[rstest]
#[case::missing("/nosuch:/data", "/nosuch")]
#[case::directory("/etc:/data", "neither a regular file nor a block device")]
#[case::form("disk.img", "SOURCE:DST")]
fn disk_that_cannot_be_is_refused(#[case] disk: &str, #[case] says: &str) {
    let host = Host::with_shared_images();

    host.container(Image::BUSYBOX)
        .option("--disk", disk)
        .command(["true"])
        .expect(125)
        .says(says);

    host.assert_clean();
}

#[test]
fn disk_in_use_is_refused() {
    let host = Host::with_shared_images();
    let disk = format!("{}:/data", text(&ext4(&host)));
    host.container(Image::BUSYBOX)
        .detached()
        .option("--name", "first")
        .option("--disk", &disk)
        .command(["sleep", "1000"])
        .expect(0);

    host.container(Image::BUSYBOX)
        .option("--disk", &disk)
        .command(["true"])
        .expect(125)
        .says("the disk is in use");

    host.run(&["rm", "-f", "first"]).expect(0);
    host.assert_clean();
}

fn gzip(plain: &Path) -> Vec<u8> {
    let output = Command::new("gzip").arg("-1c").arg(plain).output().unwrap();
    output.stdout
}

fn zstd(plain: &Path) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(File::open(plain).unwrap(), CompressionLevel::Fastest)
}

#[rstest]
#[case::gzip(gzip)]
#[case::zstd(zstd)]
fn initial_file_system_may_be_compressed(#[case] compress: fn(&Path) -> Vec<u8>) {
    let host = Host::with_shared_images();
    let [kernel, plain] = guests::ours();
    let compressed = host.file("initramfs.compressed", compress(&plain));

    host.container(Image::BUSYBOX)
        .kernel(&kernel)
        .initrd(&compressed)
        .command(["true"])
        .expect(0);
}

#[test]
fn kernel_of_a_distribution_is_taken_as_it_comes() {
    let host = Host::with_shared_images();

    let run = host
        .container(Image::BUSYBOX)
        .kernel(&path_from_environment("CORACLE_VMLINUZ"))
        .initrd(&path_from_environment("CORACLE_GUEST").join("initramfs.cpio"))
        .command(["uname", "-r"])
        .expect(0);

    assert!(run.text().ends_with("-cloud-amd64"), "{}", run.text());
}

/// The kernel with its symbols, lines and types.
#[test]
#[ignore = "takes the small kernel with its symbols: make test-kernel"]
fn dump_of_the_small_kernel_is_read_by_crash() {
    let host = Host::with_shared_images();
    host.container(Image::BUSYBOX)
        .detached()
        .option("--name", "c")
        .command(["sleep", "1234"])
        .expect(0);
    let core = host.files().join("core");

    host.run(&["dump", "c", &text(&core)]).expect(0);

    let symbols = text(&path_from_environment("CORACLE_SYMBOLS"));
    // Not by `ps` and `bt`: before 8.0.4, crash does not know this kernel's `struct pid` and stacks of exceptions.
    let tasks = "list task_struct.tasks -s task_struct.comm -h init_task";
    let commands = host.file("commands", format!("sys\nlog\n{tasks}\nquit\n"));
    let said = tool(&[
        "crash",
        "-s",
        "-i",
        &text(&commands),
        &symbols,
        &text(&core),
    ]);
    assert!(said.contains("RELEASE: 6.1"), "{said}");
    assert!(said.contains("Command line: quiet console=hvc0"), "{said}");
    assert!(said.contains("comm = \"kthreadd"), "{said}");
    assert!(said.contains("comm = \"sleep"), "{said}");
    let stack = tool(&["gdb", "-batch", "-ex", "bt", &symbols, &text(&core)]);
    assert!(stack.contains(" start_kernel "), "{stack}");
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

/// A first process that leaves another beside the agent, which answers whoever is at the console.
const TALKING_INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /console
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /console
while read module; do /bin/busybox insmod /modules/$module; done < /modules/order
{
    echo the guest is here
    while read -r line; do echo \"heard: $line\"; done
} < /console/hvc0 > /console/hvc0 &
exec /agent
";

#[test]
fn console_shows_the_guest_hands_on_what_is_typed_and_is_left_by_a_key() {
    let host = Host::with_shared_images();
    let files = [("agent", &guests::agent(&host)[..])];
    let initrd = guests::initramfs_with(TALKING_INIT.as_bytes(), &files);
    host.container(Image::BUSYBOX)
        .initrd(&host.file("talking.cpio", initrd))
        .detached()
        .option("--name", "c")
        .command(["sleep", "1000"])
        .expect(0);
    let terminal = Terminal::default();
    let run = host.start_on_terminal(&["console", "c"], &terminal);

    // What it has said before.
    terminal.await_text("the guest is here\r\n");
    terminal.type_in("hello\r");
    terminal.await_text("heard: hello\r\n");
    // Who comes later finds the same, and takes nothing from who is there.
    let file = host.start_with_input(host.coracle(&["console", "c"]), b"from a file\n".to_vec());
    terminal.await_text("heard: from a file\r\n");
    terminal.type_in("\x1d");

    run.finish().expect(0).says("Ctrl-] leaves");
    assert!(terminal.is_cooked());
    host.run(&["rm", "-f", "c"]).expect(0);
    let shown = file.finish().expect(0).text();
    assert!(shown.contains("heard: hello"), "{shown}");
    host.assert_clean();
}

#[test]
fn dump_of_a_guest_is_a_core_that_gdb_reads() {
    let host = Host::with_shared_images();
    host.container(Image::BUSYBOX)
        .detached()
        .option("--name", "c")
        .command(["sleep", "1000"])
        .expect(0);
    let core = host.files().join("core");

    host.run(&["dump", "c", &text(&core)]).expect(0);

    host.run(&["exec", "c", "true"]).expect(0);
    host.run(&["dump", "c", &text(&core)])
        .expect(125)
        .says("core");
    let registers = tool(&[
        "gdb",
        "-batch",
        "-ex",
        "info registers rip",
        "-c",
        &text(&core),
    ]);
    assert!(registers.contains("rip  "), "{registers}");
    let version = host.run(&["exec", "c", "uname", "-r"]).expect(0).text();
    let found = tool(&[
        "grep",
        "-c",
        "-a",
        &format!("Linux version {} ", version.trim()),
        &text(&core),
    ]);
    assert_ne!(found.trim(), "0", "the kernel's banner is in its memory");
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn debugger_stops_a_running_kernel_and_lets_it_go() {
    let host = Host::with_shared_images();
    let socket = host.files().join("gdb");
    host.container(Image::BUSYBOX)
        .detached()
        .option("--name", "c")
        .option("--gdb", text(&socket))
        .command(["sleep", "1000"])
        .expect(0);

    let target = format!("target remote {}", text(&socket));
    let found = tool(&[
        "gdb",
        "-batch",
        "-ex",
        &target,
        "-ex",
        "info threads",
        "-ex",
        "info registers rip",
        "-ex",
        "detach",
    ]);

    assert!(found.contains("rip  "), "{found}");
    host.run(&["exec", "c", "true"]).expect(0);
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}
