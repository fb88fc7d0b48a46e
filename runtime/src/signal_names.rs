// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Signals by their names, as users and images write them.

/// Linux's signals on this architecture, by number from 1 on.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The real-time signals, as programs number them.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The number of a signal: `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`.
///
/// # Errors
///
/// A sentence, if there is no such signal.
pub fn parse(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.parse::<i32>() {
        Ok(number) => Some(number),
        Err(_) => by_name(name),
    };
    number
        .filter(|number| (1..=*REAL_TIME.end()).contains(number))
        .ok_or_else(|| format!("there is no signal '{}'", text.escape_debug()))
}

fn by_name(name: &str) -> Option<i32> {
    let offset = |text: &str| match text {
        "" => Some(0),
        text => text
            .get(1..)?
            .parse::<i32>()
            .ok()
            .filter(|number| (0..=30).contains(number)),
    };
    let real_time = if let Some(rest) = name.strip_prefix("RTMIN") {
        (rest.is_empty() || rest.starts_with('+'))
            .then(|| offset(rest))?
            .map(|offset| REAL_TIME.start() + offset)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        (rest.is_empty() || rest.starts_with('-'))
            .then(|| offset(rest))?
            .map(|offset| REAL_TIME.end() - offset)
    } else {
        None
    };
    real_time.or_else(|| {
        let place = NAMES.iter().position(|known| *known == name)?;
        i32::try_from(place + 1).ok()
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("TERM", libc::SIGTERM)]
    #[case("SIGKILL", libc::SIGKILL)]
    #[case("sigusr1", libc::SIGUSR1)]
    #[case("SYS", libc::SIGSYS)]
    #[case("9", 9)]
    #[case("SIGRTMIN+3", 37)]
    #[case("RTMAX", 64)]
    #[case("RTMAX-1", 63)]
    fn signal_is_known(#[case] text: &str, #[case] expected: i32) {
        assert_eq!(parse(text), Ok(expected));
    }

    #[rstest]
    #[case("")]
    #[case("SIG")]
    #[case("0")]
    #[case("-9")]
    #[case("65")]
    #[case("TERMINATE")]
    #[case("RTMIN+")]
    #[case("RTMIN+é")]
    #[case("RTMIN-1")]
    #[case("RTMAX-99999999999")]
    fn other_text_is_refused(#[case] text: &str) {
        assert!(parse(text).is_err());
    }
}
