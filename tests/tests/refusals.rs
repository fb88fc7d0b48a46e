// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bad input: one clear sentence, a status other than 0, and nothing left behind.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use coracle_tests::{Finished, Host, Image};
use rstest::rstest;

/// Fails unless `run` ended with `status` and one line on standard error that has all `words`.
#[track_caller]
fn assert_refused(host: &Host, run: Finished, status: i32, words: &[&str]) {
    run.expect(status).says_once(words);
    host.assert_clean();
}

#[rstest]
#[case::no_such_image(&["/nonexistent/image", "true"], 125, &["/nonexistent/image"])]
#[case::no_such_tag(&["BUSYBOX:nonsense", "true"], 125, &["nonsense"])]
#[case::command_not_found(&["BUSYBOX", "/no/such/program"], 127, &["/no/such/program", "does not exist"])]
#[case::command_not_in_path(&["BUSYBOX", "nonsense"], 127, &["nonsense", "not found"])]
#[case::command_not_executable(&["BUSYBOX", "/etc/passwd"], 126, &["/etc/passwd"])]
#[case::command_is_a_directory(&["BUSYBOX", "/etc"], 126, &["/etc"])]
#[case::unknown_user(&["-u", "nobodyhere", "BUSYBOX", "true"], 125, &["nobodyhere"])]
#[case::unknown_group(&["-u", "0:nogrouphere", "BUSYBOX", "true"], 125, &["nogrouphere"])]
#[case::volume_of_a_missing_path(&["-v", "/no/such/path:/data", "BUSYBOX", "true"], 125, &["/no/such/path"])]
#[case::memory_too_small(&["--memory", "8", "BUSYBOX", "true"], 125, &["8 MiB"])]
#[case::memory_just_too_small(&["--memory", "95", "BUSYBOX", "true"], 125, &["95 MiB"])]
#[case::before_a_pull_memory(&["--memory", "8", "registry.invalid/image"], 125, &["8 MiB"])]
#[case::before_a_pull_hostname(&["--hostname", "a b", "registry.invalid/image"], 125, &["a b", "host name"])]
#[case::before_a_pull_volumes(&["-v", "/etc:/data", "-v", "/tmp:/data", "registry.invalid/image"], 125, &["two volumes", "/data"])]
#[case::before_a_pull_disk(&["--disk", "/no/such/disk:/data", "registry.invalid/image"], 125, &["/no/such/disk"])]
#[case::port_without_a_network(&["--network", "none", "-p", "80:80", "BUSYBOX", "true"], 125, &["--publish needs a network"])]
#[case::address_without_a_network(&["--network", "none", "--ip", "10.0.0.2/24", "BUSYBOX", "true"], 125, &["--ip needs a network"])]
#[case::none_beside_another(&["--network", "none", "--network", "host-nat", "BUSYBOX", "true"], 125, &["none cannot be beside others"])]
#[case::no_such_rootfs(&["--rootfs", "/no/such/tree", "true"], 125, &["/no/such/tree"])]
#[case::kernel_missing(&["--kernel", "/no/such/kernel", "BUSYBOX", "true"], 125, &["/no/such/kernel", "--kernel"])]
#[case::kernel_that_is_no_kernel(&["--kernel", "/bin/busybox", "BUSYBOX", "true"], 125, &["/bin/busybox"])]
#[case::kernel_that_is_text(&["--kernel", "/etc/passwd", "BUSYBOX", "true"], 125, &["/etc/passwd", "neither an ELF file nor a bzImage"])]
fn refused_with_one_sentence(#[case] words: &[&str], #[case] status: i32, #[case] says: &[&str]) {
    let host = Host::new();
    let busybox = Image::BUSYBOX.to_string();
    let words: Vec<_> = [&["run"], words]
        .concat()
        .iter()
        .map(|word| word.replace("BUSYBOX", &busybox))
        .collect();

    let run = host.run(&words);

    assert_refused(&host, run, status, says);
}

#[test]
fn truncated_archive_is_refused() {
    let host = Host::new();
    let whole = fs::read(Image::BUSYBOX_ARCHIVE.path()).unwrap();
    let archive = host.file("cut.tar", &whole[..whole.len() / 2]);

    let run = host.container(archive.display()).finish();

    assert_refused(&host, run, 125, &["cut.tar"]);
}

#[test]
fn layer_with_another_digest_is_refused() {
    let host = Host::new();
    let layout = Image::BUSYBOX.copy_to(&host);
    let blob = largest_file(&layout.blobs());
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();

    let run = host.container(layout).finish();

    let name = blob.file_name().unwrap().to_str().unwrap();
    assert_refused(&host, run, 125, &["digest", name]);
    let unpacked = fs::read_dir(host.images().join("trees/sha256"));
    assert_eq!(unpacked.map_or(0, Iterator::count), 0);
}

#[rstest]
#[case::parent("../escaped", None)]
#[case::absolute("/../../escaped", None)]
#[case::link_to_outside("link", Some("../../../../etc/passwd"))]
fn layer_that_reaches_outside_is_refused(#[case] path: &str, #[case] hard_link_to: Option<&str>) {
    let host = Host::new();
    let layout = Image::BUSYBOX.copy_to(&host);
    layout.add_layer(&host.file("layer.tar", tar_of(path, hard_link_to)));

    let run = host.container(layout).finish();

    assert_refused(&host, run, 125, &["layer", path]);
    assert!(!host.files().join("escaped").exists());
}

#[rstest]
#[case::volume(&["-v", "nonsense", "BUSYBOX", "true"], "nonsense")]
#[case::cpus(&["--cpus", "0", "BUSYBOX", "true"], "--cpus")]
#[case::option(&["--nonsense", "BUSYBOX", "true"], "--nonsense")]
fn wrong_usage_has_the_status_of_our_own_failures(#[case] words: &[&str], #[case] says: &str) {
    let host = Host::new();

    let run = host.run(&[&["run"], words].concat());

    run.expect(125).says(says);
    host.assert_clean();
}

#[rstest]
#[case::unknown_key("[run]\nmemroy = 512\n", "is run.memory meant?")]
#[case::wrong_kind("[run]\ncpus = \"two\"\n", "cpus")]
#[case::no_toml("[run\n", "config")]
fn configuration_that_is_broken_is_refused(#[case] text: &str, #[case] says: &str) {
    let host = Host::with_shared_images();
    let file = host.file("config.toml", text);

    let run = host
        .container(Image::BUSYBOX)
        .variable("CORACLE_CONFIG", &file)
        .command(["true"])
        .finish();

    run.expect(125).says(&file.display().to_string()).says(says);
    host.assert_clean();
}

#[test]
fn least_memory_is_enough() {
    let host = Host::new();

    let run = host
        .container(Image::BUSYBOX)
        .memory(96)
        .command(["echo", "enough"])
        .expect(0);

    assert_eq!(run.text(), "enough");
}

#[test]
fn image_without_a_command_is_refused() {
    let host = Host::new();
    let layout = Image::BUSYBOX.copy_to(&host);
    layout.configure(&["--clear", "config.cmd", "--clear", "config.entrypoint"]);

    let run = host.container(layout).finish();

    assert_refused(&host, run, 125, &["command"]);
}

#[test]
fn user_without_the_right_to_kvm_is_told_so() {
    let host = Host::new();
    let open = host.folder("open");
    chown(&open, Some(65534), None).unwrap();
    let (root, state) = (open.join("root"), open.join("state"));

    let run = host
        .container(Image::BUSYBOX)
        .variable("CORACLE_ROOT", &root)
        .variable("CORACLE_STATE", &state)
        .under(["setpriv", "--reuid=65534", "--clear-groups"])
        .finish();

    let says = ["cannot open /dev/kvm", "ermission denied"];
    assert_refused(&host, run, 125, &says);
    assert!(!root.exists() && !state.exists());
}

#[test]
fn host_without_kvm_is_told_so() {
    let host = Host::new();
    // A device directory of its own, with what programs expect but KVM.
    let script = "mount -t tmpfs dev /dev && mknod -m 666 /dev/null c 1 3 && exec \"$@\"";

    let run = host
        .container(Image::BUSYBOX)
        .under(["unshare", "--mount", "sh", "-c", script, "sh"])
        .finish();

    assert_refused(&host, run, 125, &["cannot open /dev/kvm", "coracle check"]);
}

#[test]
fn text_of_an_image_does_not_steer_the_terminal() {
    let host = Host::new();

    let run = host
        .container(Image::BUSYBOX)
        .command(["/\u{1b}]52;c;\u{7}"])
        .expect(127);

    let run = run.says("52;c;");
    assert!(
        !run.stderr.chars().any(|c| c.is_control() && c != '\n'),
        "{:?}",
        run.stderr
    );
}

#[test]
fn check_agrees_that_this_host_can_run() {
    let host = Host::new();

    let run = host.run(&["check", "--json"]).expect(0);

    let report: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["can_run"], true);
    let names: Vec<_> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"kvm") && names.contains(&"cpu") && names.contains(&"network host-nat"),
        "{names:?}"
    );
}

/// An archive of one entry, a file or a hard link, whose names are as given: well-behaved tools make none like it.
fn tar_of(path: &str, hard_link_to: Option<&str>) -> Vec<u8> {
    let mut header = [0u8; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, "00000000000");
    put(136, "00000000000");
    put(148, "        ");
    put(156, if hard_link_to.is_some() { "1" } else { "0" });
    put(157, hard_link_to.unwrap_or_default());
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    [header.as_slice(), &[0; 1024]].concat()
}

fn largest_file(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .max_by_key(|file| file.metadata().unwrap().len())
        .expect("the directory has files")
}
