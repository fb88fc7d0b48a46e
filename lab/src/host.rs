// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether this host can run virtual machines itself.
//!
//! `/dev/kvm` alone does not tell: some clouds offer one without hardware virtualisation beneath
//! it, on which an ordinary guest kernel does not run. The CPU has to have VMX or SVM as well.

use std::fs::{self, File};

/// Where virtual machines run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this host's KVM.
    Direct,
    /// In the lab.
    Lab,
}

/// Where virtual machines run, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where.
    pub place: Place,
    /// Why, as a sentence.
    pub reason: String,
}

/// Looks at this host. `CORACLE_FORCE_LAB=1` chooses the lab everywhere.
#[must_use]
pub fn choose() -> Choice {
    if std::env::var_os("CORACLE_FORCE_LAB").is_some_and(|value| value == "1") {
        return Choice {
            place: Place::Lab,
            reason: "CORACLE_FORCE_LAB=1 asks for the lab".to_owned(),
        };
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let device = File::options().read(true).write(true).open("/dev/kvm");
    decide(
        &cpuinfo,
        device.map(|_| ()).map_err(|error| error.to_string()),
    )
}

fn decide(cpuinfo: &str, device: Result<(), String>) -> Choice {
    let extension = cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("flags"))
        .flat_map(str::split_whitespace)
        .find(|flag| matches!(*flag, "vmx" | "svm"));
    let (place, reason) = match (extension, device) {
        (Some(flag), Ok(())) => (
            Place::Direct,
            format!("the CPU has {flag} and /dev/kvm opens"),
        ),
        (Some(flag), Err(error)) => (
            Place::Lab,
            format!("the CPU has {flag}, but /dev/kvm does not open: {error}"),
        ),
        (None, Ok(())) => (
            Place::Lab,
            "/dev/kvm opens, but the CPU has neither vmx nor svm: \
             ordinary guest kernels do not run on it"
                .to_owned(),
        ),
        (None, Err(error)) => (
            Place::Lab,
            format!("the CPU has neither vmx nor svm, and /dev/kvm does not open: {error}"),
        ),
    };
    Choice { place, reason }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::intel("flags\t\t: fpu vmx sse", Ok(()), Place::Direct)]
    #[case::amd("flags\t\t: fpu svm", Ok(()), Place::Direct)]
    #[case::no_device("flags\t\t: fpu svm", Err("No such file"), Place::Lab)]
    #[case::device_without_extension("flags\t\t: fpu sse", Ok(()), Place::Lab)]
    #[case::flag_of_another_name("flags\t\t: svm_lock\nmodel name: svm", Ok(()), Place::Lab)]
    #[case::nothing("", Err("No such file"), Place::Lab)]
    fn place_depends_on_cpu_and_device(
        #[case] cpuinfo: &str,
        #[case] device: Result<(), &str>,
        #[case] expected: Place,
    ) {
        let choice = decide(cpuinfo, device.map_err(str::to_owned));

        assert_eq!(choice.place, expected);
    }
}
