// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a plugin says it made (section 5 of the specification).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::dns::{Dns, is_word, kept};

/// More of anything is no result of a plugin.
const MAX_ITEMS: usize = 1024;

/// A plugin's result, as far as this crate uses it. The kernel is asked for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CniResult {
    pub(crate) interfaces: Vec<ResultInterface>,
    pub(crate) ips: Vec<ResultAddress>,
    routes: Vec<ResultRoute>,
    dns: ResultDns,
}

/// An interface that a plugin made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct ResultInterface {
    pub(crate) name: String,
    /// Empty for one on the host.
    pub(crate) sandbox: String,
}

/// An address that a plugin gave.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ResultAddress {
    pub(crate) address: IpNet,
    #[serde(default)]
    pub(crate) gateway: Option<IpAddr>,
    /// Which of the interfaces has it.
    #[serde(default)]
    pub(crate) interface: Option<usize>,
}

/// A route that a plugin made. It is read to be checked: the kernel's own routes are what counts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct ResultRoute {
    dst: IpNet,
    #[serde(default)]
    gw: Option<IpAddr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct ResultDns {
    nameservers: Vec<String>,
    domain: Option<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl CniResult {
    /// Reads a result.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let value =
            serde_json::from_slice(bytes).map_err(|error| format!("it is no JSON: {error}"))?;
        Self::from_value(value)
    }

    pub(crate) fn from_value(value: Value) -> Result<Self, String> {
        if !value.is_object() {
            return Err("it is no JSON object".to_owned());
        }
        let result: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        let counts = [
            result.interfaces.len(),
            result.ips.len(),
            result.routes.len(),
        ];
        if let Some(count) = counts.into_iter().find(|count| *count > MAX_ITEMS) {
            return Err(format!("it lists {count} of a kind; {MAX_ITEMS} are taken"));
        }
        if let Some(index) = result
            .ips
            .iter()
            .filter_map(|address| address.interface)
            .find(|index| *index >= result.interfaces.len())
        {
            return Err(format!(
                "an address is of interface {index}, but there are {} interfaces",
                result.interfaces.len()
            ));
        }
        Ok(result)
    }

    /// What it says of names, without what is none.
    #[must_use]
    pub fn to_dns(&self) -> Dns {
        let search: Vec<String> = kept(self.dns.search.iter().map(String::as_str));
        let domain = self
            .dns
            .domain
            .iter()
            .filter(|domain| is_word(domain))
            .cloned();
        Dns {
            nameservers: self
                .dns
                .nameservers
                .iter()
                .filter_map(|server| server.parse().ok())
                .take(MAX_ITEMS)
                .collect(),
            search: if search.is_empty() {
                domain.collect()
            } else {
                search
            },
            options: kept(self.dns.options.iter().map(String::as_str)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[test]
    fn result_of_the_specifications_example_is_read() {
        let result = CniResult::parse(
            br#"{"cniVersion":"1.0.0","interfaces":[{"name":"cni0","mac":"00:11:22:33:44:55"},
                {"name":"eth0","mac":"99:88:77:66:55:44","sandbox":"/var/run/netns/blue"}],
                "ips":[{"address":"10.1.0.5/16","gateway":"10.1.0.1","interface":1}],
                "routes":[{"dst":"0.0.0.0/0"}],
                "dns":{"nameservers":["10.1.0.1","nonsense"],"domain":"a.example","options":["ndots:2","a b"]}}"#,
        )
        .unwrap();

        assert_eq!(result.ips[0].address.to_string(), "10.1.0.5/16");
        assert_eq!(result.interfaces[1].name, "eth0");
        let dns = result.to_dns();
        assert_eq!(dns.nameservers, ["10.1.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(dns.search, ["a.example"]);
        assert_eq!(dns.options, ["ndots:2"]);
    }

    #[rstest]
    #[case::garbage("garbage", "no JSON")]
    #[case::list("[]", "no JSON object")]
    #[case::address(r#"{"ips":[{"address":"10.0.0.256/8"}]}"#, "")]
    #[case::index(
        r#"{"ips":[{"address":"10.0.0.2/8","interface":3}]}"#,
        "there are 0 interfaces"
    )]
    #[case::negative_index(r#"{"ips":[{"address":"10.0.0.2/8","interface":-1}]}"#, "")]
    #[case::route(r#"{"routes":[{"dst":"x"}]}"#, "")]
    fn result_that_cannot_be_is_told(#[case] text: &str, #[case] reason: &str) {
        let error = CniResult::parse(text.as_bytes()).unwrap_err();

        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn result_with_more_than_any_network_has_is_refused() {
        let many = vec![r#"{"dst":"10.0.0.0/8"}"#; 1025].join(",");

        assert!(CniResult::parse(format!(r#"{{"routes":[{many}]}}"#).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = CniResult::parse(&bytes);
        }
    }
}
