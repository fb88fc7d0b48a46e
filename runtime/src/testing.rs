// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What tests need since others run at the same time, in threads of one process that start processes too.

use std::env;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use coracle_oci::image::ImageConfig;
use coracle_oci::plan::{Places, Request, SandboxPlan, VmShape};
use coracle_oci::spec::Overrides;
use coracle_oci::user::User;

/// Says, in its environment, that a process is there for one test.
const ALONE: &str = "CORACLE_TEST_ALONE";

/// Does `work`, which forks, as the test `test` in a process of its own: in a child, what another test's thread had
/// locked would stay locked for ever.
pub fn alone<T: Fn()>(_test: T, work: impl FnOnce()) {
    if env::var_os(ALONE).is_some() {
        return work();
    }
    let path = std::any::type_name::<T>();
    // That of a test is told without its crate's name.
    let (_, name) = path.split_once("::").unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args([name, "--exact", "--test-threads=1"])
        .env(ALONE, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{complaint}");
    assert!(told.contains("1 passed"), "{told}");
}

/// Writes a script that can be run. Another process does so: what another test starts meanwhile would have this one's
/// descriptor for a moment, and a file that is open for writing is not run.
pub fn write_script(path: &Path, script: &str) {
    let mut shell = Command::new("sh")
        .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = shell.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    assert!(shell.wait().unwrap().success());
}

/// The plan of a container with these volumes and disks, whose files are nowhere.
pub fn plan(volumes: &[&str], disks: &[&str]) -> SandboxPlan {
    let volumes: Vec<_> = volumes.iter().map(|text| text.parse().unwrap()).collect();
    let disks: Vec<_> = disks.iter().map(|text| text.parse().unwrap()).collect();
    let nowhere = Path::new("/nowhere");
    SandboxPlan::new(Request {
        id: "c",
        vm: VmShape {
            vcpus: 1,
            memory_mib: 256,
        },
        config: &ImageConfig::default(),
        overrides: &Overrides {
            command: vec!["true".into()],
            ..Overrides::default()
        },
        user: &User::default(),
        volumes: &volumes,
        disks: &disks,
        served_disks: &[],
        places: Places {
            lower: nowhere,
            upper: nowhere,
            work: nowhere,
            share: nowhere,
            guest_share: Path::new("/share"),
        },
    })
    .unwrap()
}
