//! The interfaces whose packets our programs see.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::Status;
use crate::paint::{Paint, Tone};

/// An interface with programs of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name; its number, if it has just vanished.
    pub name: String,
    /// How they are attached: `tcx` or `clsact`.
    pub attached: String,
    /// What they are called.
    pub programs: Vec<String>,
}

impl Status {
    pub(super) fn write_interfaces(&self, text: &mut String, paint: Paint) -> std::fmt::Result {
        if self.interfaces.is_empty() {
            return Ok(());
        }
        writeln!(text, "\n{}", paint.text(Tone::Strong, "Interfaces"))?;
        for interface in &self.interfaces {
            let InterfaceStatus {
                name,
                attached,
                programs,
            } = interface;
            writeln!(text, "  {name:8}  {attached:6}  {}", programs.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_says_how_and_what() {
        let status = Status {
            interfaces: vec![InterfaceStatus {
                name: "eth1".into(),
                attached: "tcx".into(),
                programs: vec!["gateway".into(), "router".into()],
            }],
            ..Status::default()
        };
        let text = status.text(Paint::plain());
        assert!(
            text.contains("\n\nInterfaces\n  eth1      tcx     gateway, router\n"),
            "{text}"
        );
    }
}
