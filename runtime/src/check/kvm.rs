// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What there is of hardware virtualisation.

use std::io;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

use super::report::Finding;

/// What a machine of ours asks of KVM.
const CAPABILITIES: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// The device, and whether this user may open it.
pub fn device(path: &Path) -> Finding {
    const NAME: &str = "kvm";
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path);
    match opened {
        Ok(_) => Finding::ok(NAME, format!("{} opens", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::missing(
            NAME,
            format!("{} does not exist", path.display()),
            "load the module (modprobe kvm-intel, or modprobe kvm-amd); if that fails, turn on virtualisation \
             (VT-x, AMD-V) in the firmware, or nested virtualisation for a virtual machine",
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::missing(
            NAME,
            format!("{} exists, but this user may not open it", path.display()),
            "run as root, or add the user to the group that owns the device (usually kvm)",
        ),
        Err(error) => Finding::missing(
            NAME,
            format!("{} does not open: {error}", path.display()),
            "see the kernel's log (dmesg) for what KVM says of it",
        ),
    }
}

/// Whether the processor virtualises. A host may have a `/dev/kvm` with nothing beneath it that
/// could run an ordinary kernel at speed, so the device alone does not tell.
pub fn cpu(cpuinfo: &str, device_exists: bool) -> Finding {
    const NAME: &str = "cpu";
    let flags = cpuinfo.lines().find_map(|line| {
        line.strip_prefix("flags")
            .and_then(|rest| rest.split_once(':'))
    });
    let has = |flag| {
        flags.is_some_and(|(_, flags)| flags.split_ascii_whitespace().any(|word| word == flag))
    };
    if has("vmx") {
        Finding::ok(NAME, "virtualises (Intel VT-x)")
    } else if has("svm") {
        Finding::ok(NAME, "virtualises (AMD-V)")
    } else if device_exists {
        Finding::missing(
            NAME,
            "has neither vmx nor svm, although /dev/kvm exists: this KVM interprets guest kernels in software and \
             cannot run an ordinary one",
            "use a host with hardware virtualisation, or try coracle in the emulated lab of its source tree (make lab)",
        )
    } else {
        Finding::missing(
            NAME,
            "has neither vmx nor svm",
            "turn on virtualisation (VT-x, AMD-V) in the firmware, or nested virtualisation for a virtual machine; \
             to try coracle without it, use the emulated lab of its source tree (make lab)",
        )
    }
}

/// Whether KVM can do all that a machine of ours asks of it.
pub fn capabilities() -> Finding {
    const NAME: &str = "kvm capabilities";
    let Ok(kvm) = Kvm::new() else {
        return Finding::missing(NAME, "not known: /dev/kvm does not open", "see above");
    };
    let lacking: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| *name)
        .collect();
    if lacking.is_empty() {
        Finding::ok(
            NAME,
            format!(
                "API {}, all {} that are needed",
                kvm.get_api_version(),
                CAPABILITIES.len()
            ),
        )
    } else {
        Finding::missing(
            NAME,
            format!("without {}", lacking.join(", ")),
            "use a newer kernel on this host",
        )
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::report::Status;
    use super::*;

    #[rstest]
    #[case::intel("flags\t\t: fpu vmx smep\n", true, Status::Ok, "Intel")]
    #[case::amd("flags\t\t: fpu svm\n", true, Status::Ok, "AMD")]
    #[case::kvm_without_virtualisation(
        "flags\t\t: fpu smep\n",
        true,
        Status::Missing,
        "although /dev/kvm exists"
    )]
    #[case::nothing("flags\t\t: fpu smep\n", false, Status::Missing, "neither")]
    #[case::a_flag_that_only_begins_alike(
        "flags\t\t: vmxfoo svm_lock\n",
        true,
        Status::Missing,
        "neither"
    )]
    #[case::another_line(
        "vmx flags\t: ept\nflags\t\t: fpu\n",
        false,
        Status::Missing,
        "neither"
    )]
    #[case::empty("", false, Status::Missing, "neither")]
    fn cpu_is_told_by_its_flags(
        #[case] cpuinfo: &str,
        #[case] device: bool,
        #[case] status: Status,
        #[case] says: &str,
    ) {
        let finding = cpu(cpuinfo, device);

        assert_eq!(finding.status, status);
        assert!(finding.found.contains(says), "{}", finding.found);
    }

    #[test]
    fn absent_device_names_the_modules_to_load() {
        let finding = device(Path::new("/nonexistent/kvm"));

        assert_eq!(finding.status, Status::Missing);
        assert!(finding.remedy.unwrap().contains("modprobe kvm-intel"));
    }
}
