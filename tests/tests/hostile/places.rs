// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Another user of the host who was where the run keeps its files before it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use coracle_tests::{Host, Image};
use rstest::rstest;

use crate::setup::Victim;

/// The other user.
const NOBODY: u32 = 65534;

/// How others get a say in a directory.
type Opened = fn(&Path);

fn given_away(directory: &Path) {
    chown(directory, Some(NOBODY), Some(NOBODY)).unwrap();
}

fn open_to_all(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
}

fn kept(_: &Path) {}

/// No guest is started: what happens before that, and the clean-up after it, is what counts.
#[rstest]
#[case::root_of_another_user("root", "containers", given_away, "base/root")]
#[case::root_open_to_all("root", "containers", open_to_all, "base/root")]
#[case::images_of_another_user("root", "images", given_away, "base/root")]
#[case::images_open_to_all("root", "images", open_to_all, "base/root")]
#[case::state_of_another_user("state", "directory", given_away, "base/state")]
#[case::state_open_to_all("state", "directory", open_to_all, "base/state")]
#[case::containers_of_another_user(
    "root/containers",
    "directory",
    given_away,
    "base/root/containers"
)]
#[case::containers_open_to_all("root/containers", "directory", open_to_all, "base/root/containers")]
#[case::containers_are_a_link("root", "containers", kept, "no kernel")]
#[case::state_is_a_link(".", "state", kept, "no kernel")]
#[case::link_among_containers("root/containers", "directory", kept, "no kernel")]
#[case::link_with_the_name_of_a_container("root/containers", "0123456789ab", kept, "no kernel")]
#[case::link_among_images("root/images/tmp", "directory", kept, "no kernel")]
fn what_was_planted_is_not_followed(
    #[case] place: &str,
    #[case] name: &str,
    #[case] opened: Opened,
    #[case] reason: &str,
) {
    let host = Host::new();
    let victim = Victim::new(&host);
    let base = host.folder("base");
    let place = host.folder(&format!("base/{place}"));
    symlink(&victim.path, place.join(name)).unwrap();
    opened(&place);

    let run = host
        .container(Image::BUSYBOX)
        .kernel(&host.file("no kernel", "no kernel"))
        .variable("CORACLE_ROOT", base.join("root"))
        .variable("CORACLE_STATE", base.join("state"))
        .command(["true"])
        .expect(125);

    victim.assert_unharmed();
    run.says_once(&[reason]);
    host.assert_clean();
}
