// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any bytes as an index, a manifest and a config; what is a config becomes a specification.
#![no_main]

use std::path::Path;

use arbitrary::Arbitrary;
use coracle_oci::image::{ImageConfig, Index, Manifest};
use coracle_oci::plan::{Places, Request, SandboxPlan, VmShape};
use coracle_oci::spec::{self, Overrides};
use coracle_oci::user::look_up;
use coracle_oci::volume::Volume;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'i> {
    document: &'i [u8],
    passwd: &'i [u8],
    group: &'i [u8],
    command: Vec<String>,
    environment: Vec<String>,
    workdir: Option<String>,
    hostname: Option<String>,
    user: Option<String>,
    volumes: Vec<String>,
}

fuzz_target!(|input: Input<'_>| {
    let _ = Index::from_json(input.document);
    let _ = Manifest::from_json(input.document);
    let config = ImageConfig::from_json(input.document).unwrap_or_default();
    let overrides = Overrides {
        command: input.command,
        env: input.environment,
        workdir: input.workdir,
        user: input.user,
        hostname: input.hostname,
        terminal: None,
    };
    let volumes: Vec<Volume> = input
        .volumes
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    let user =
        look_up(spec::user(&config, &overrides), input.passwd, input.group).unwrap_or_default();

    let plan = SandboxPlan::new(Request {
        id: "fuzz",
        vm: VmShape {
            vcpus: 1,
            memory_mib: 256,
        },
        config: &config,
        overrides: &overrides,
        user: &user,
        volumes: &volumes,
        disks: &[],
        served_disks: &[],
        places: Places {
            lower: Path::new("/lower"),
            upper: Path::new("/upper"),
            work: Path::new("/work"),
            share: Path::new("/share"),
            guest_share: Path::new("/run/share"),
        },
    });

    let Ok(plan) = plan else { return };
    let process = plan.spec.process().as_ref().expect("a plan has a process");
    let texts = process.args().iter().chain(process.env()).flatten();
    assert!(texts.clone().count() > 0 && texts.clone().all(|text| !text.contains('\0')));
    assert!(process.cwd().is_absolute());
    let destinations = || {
        plan.spec
            .mounts()
            .iter()
            .flatten()
            .map(|mount| mount.destination())
    };
    assert!(destinations().all(|destination| destination.is_absolute()));
    assert_eq!(
        destinations()
            .filter(|destination| destination.starts_with("/proc"))
            .count(),
        1
    );
    let again: SandboxPlan = plan.to_string().parse().expect("a plan's text is a plan");
    assert_eq!(again, plan, "a plan survives its text");
});
