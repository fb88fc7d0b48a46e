// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Facts about the image that go along with a container (image-spec, conversion, "Annotation
//! Fields").

use std::collections::HashMap;

use crate::image::ImageConfig;

/// The image's labels, and beside them what its config states; labels win.
pub(super) fn annotations(config: &ImageConfig) -> HashMap<String, String> {
    let ports: Vec<&str> = config
        .config
        .exposed_ports
        .iter()
        .map(String::as_str)
        .collect();
    let stated = [
        ("os", config.os.clone()),
        ("architecture", config.architecture.clone()),
        ("stopSignal", config.config.stop_signal.clone()),
        ("exposedPorts", ports.join(",")),
    ];
    let stated = stated
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value));
    stated.chain(config.config.labels.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ContainerConfig;

    #[test]
    fn labels_win() {
        let labels = [
            ("org.opencontainers.image.os".into(), "other".into()),
            ("mine".into(), "yes".into()),
        ];
        let config = ImageConfig {
            os: "linux".into(),
            architecture: "amd64".into(),
            config: ContainerConfig {
                stop_signal: "SIGINT".into(),
                exposed_ports: ["443/tcp".into(), "80/tcp".into()].into(),
                labels: labels.into(),
                ..ContainerConfig::default()
            },
            ..ImageConfig::default()
        };

        let found = annotations(&config);

        let expected = [
            ("org.opencontainers.image.os", "other"),
            ("org.opencontainers.image.architecture", "amd64"),
            ("org.opencontainers.image.stopSignal", "SIGINT"),
            ("org.opencontainers.image.exposedPorts", "443/tcp,80/tcp"),
            ("mine", "yes"),
        ];
        assert_eq!(
            found,
            expected
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into()
        );
    }
}
