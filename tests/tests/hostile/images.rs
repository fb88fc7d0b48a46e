// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image whose links lead to where the host or the agent is about to look, mount or write.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use coracle_tests::{Host, Image};
use rstest::rstest;

use crate::setup::{Victim, tree};

/// More levels than there are above any directory of a test.
const UP: &str = "../../../../../../../..";

/// A tree with a link to the victim, who has a namesake in the tree or not.
fn tree_with_link(
    host: &Host,
    link: &str,
    victim: &Victim,
    upwards: &str,
    is_there: bool,
) -> PathBuf {
    let tree = tree(host);
    let path = victim.path.to_str().unwrap();
    symlink(format!("{upwards}{path}"), tree.join(link)).unwrap();
    if is_there {
        fs::create_dir_all(tree.join(path.trim_start_matches('/'))).unwrap();
    }
    tree
}

#[rstest]
#[case::proc("proc", "/etc")]
#[case::proc_upwards("proc", "../../../../etc")]
#[case::sys("sys", "/etc")]
#[case::devices("dev", "/etc")]
fn kernel_file_system_at_a_link_is_refused(#[case] link: &str, #[case] target: &str) {
    let host = Host::with_shared_images();
    let tree = tree(&host);
    fs::create_dir(tree.join("etc")).unwrap();
    symlink(target, tree.join(link)).unwrap();

    let run = host.container_on(&tree).command(["true"]).expect(125);

    run.says_once(&[link, "link"]);
    host.assert_clean();
}

#[rstest]
fn directory_is_made_in_the_image_or_not_at_all(
    #[values("", UP)] upwards: &str,
    #[values(true, false)] is_there: bool,
) {
    let host = Host::with_shared_images();
    let victim = Victim::new(&host);
    let tree = tree_with_link(&host, "linked", &victim, upwards, is_there);

    let run = host
        .container_on(&tree)
        .workdir("/linked/made")
        .shell("test -d /linked/made")
        .finish();

    if is_there {
        run.expect(0);
    } else {
        run.expect(125)
            .says_once(&["working directory", "/linked/made"]);
    }
    victim.assert_unharmed();
    host.assert_clean();
}

#[rstest]
fn volume_at_a_link_is_where_the_container_looks(
    #[values("", UP)] upwards: &str,
    #[values(true, false)] is_there: bool,
) {
    let host = Host::with_shared_images();
    let victim = Victim::new(&host);
    let tree = tree_with_link(&host, "data", &victim, upwards, is_there);
    let volume = host.folder("volume");
    fs::write(volume.join("file"), "of the volume").unwrap();

    let run = host
        .container_on(&tree)
        .volume(&volume, "/data")
        .shell("cat /data/file")
        .expect(0);

    assert_eq!(run.text(), "of the volume");
    victim.assert_unharmed();
    host.assert_clean();
}

#[rstest]
#[case::absolute("")]
#[case::upwards(UP)]
fn users_of_the_host_are_none_of_the_image(#[case] upwards: &str) {
    let host = Host::with_shared_images();
    let users = host.file("users", "attacker:x:0:0:::\n");
    let tree = tree(&host);
    fs::create_dir(tree.join("etc")).unwrap();
    symlink(
        format!("{upwards}{}", users.display()),
        tree.join("etc/passwd"),
    )
    .unwrap();

    let run = host
        .container_on(&tree)
        .user("attacker")
        .command(["true"])
        .expect(125);

    run.says_once(&["attacker"]);
    host.assert_clean();
}

#[rstest]
#[case::descriptor("/proc/self/fd/7")]
#[case::descriptor_below("/proc/self/fd/3/../..")]
#[case::root_of_the_agent("/proc/1/root/..")]
#[case::link("/link")]
fn working_directory_does_not_lead_out_of_the_container(#[case] directory: &str) {
    let host = Host::with_shared_images();
    let layout = Image::BUSYBOX.copy_to(&host);
    layout.configure(&["--config.workingdir", directory]);
    let tree = tree(&host);
    symlink("/proc/self/fd/7", tree.join("link")).unwrap();
    // What is in the guest's root, or in the share's, and not in the container's.
    let script = "pwd; for up in . .. ../.. ../../.. ../../../..; do ls -d $up/init $up/rootfs $up/volumes; done 2>/dev/null; echo tried";

    for container in [
        host.container(&layout),
        host.container_on(&tree).workdir(directory),
    ] {
        let run = container.shell(script).finish();

        let seen = run.text();
        let contained = run.status == 0 && seen.lines().count() == 2 && seen.ends_with("tried");
        assert!(contained || run.status == 125, "{run:?}");
    }
    host.assert_clean();
}
