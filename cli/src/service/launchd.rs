//! The property list for macOS's launchd.

use super::plan::{MARK, ServicePlan};

/// The property list of a service, as launchd.plist(5) has it.
pub(super) fn property_list(plan: &ServicePlan) -> String {
    let text = |path: &std::path::Path| escaped(&path.to_string_lossy());
    let (program, dir) = (text(&plan.program), text(&plan.state_dir));
    let owner = plan.owner.as_ref().map_or_else(String::new, |(user, group)| {
        let (user, group) = (escaped(user), escaped(group));
        format!(
            "  <key>UserName</key>\n  <string>{user}</string>\n  <key>GroupName</key>\n  \
             <string>{group}</string>\n"
        )
    });
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
         \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <!-- {MARK}. -->\n\
         <plist version=\"1.0\">\n<dict>\n\
         \x20 <key>Label</key>\n  <string>{label}</string>\n\
         \x20 <key>ProgramArguments</key>\n  <array>\n    <string>{program}</string>\n    \
         <string>run</string>\n    <string>--dir</string>\n    <string>{dir}</string>\n  </array>\n\
         {owner}\
         \x20 <key>RunAtLoad</key>\n  <true/>\n\
         \x20 <key>KeepAlive</key>\n  <dict>\n    <key>SuccessfulExit</key>\n    <false/>\n  </dict>\n\
         \x20 <key>ThrottleInterval</key>\n  <integer>10</integer>\n\
         \x20 <key>ExitTimeOut</key>\n  <integer>900</integer>\n\
         \x20 <key>StandardErrorPath</key>\n  <string>{dir}/logs/launchd.log</string>\n\
         </dict>\n</plist>\n",
        label = escaped(&label(&plan.name)),
    )
}

/// The name that launchd knows a service by.
pub(super) fn label(name: &str) -> String {
    format!("chandler.{name}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::plan::Scope;
    use super::*;

    #[test]
    fn paths_are_texts_of_the_list() {
        let plan = ServicePlan {
            scope: Scope::User,
            name: "chandler".to_owned(),
            program: PathBuf::from("/usr/local/bin/chandler"),
            state_dir: PathBuf::from("/Users/me/a <b> & c"),
            reads: vec![],
            owner: None,
            hang: None,
        };
        let list = property_list(&plan);
        assert!(list.contains("    <string>/Users/me/a &lt;b&gt; &amp; c</string>\n"), "{list}");
        assert!(list.contains("<string>chandler.chandler</string>") && !list.contains("UserName"));
        let opened = list.matches("<dict>").count() + list.matches("<array>").count();
        let closed = list.matches("</dict>").count() + list.matches("</array>").count();
        assert_eq!(opened, closed);
    }
}
