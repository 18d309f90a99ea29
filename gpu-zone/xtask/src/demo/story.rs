use anyhow::bail;
use gpuzone_testkit::Finished;

/// Characters of a line of text.
const WIDTH: usize = 92;

/// What the demo tells, and what of it was not as it should be.
#[derive(Debug, Default)]
pub(super) struct Story {
    chapters: u32,
    checks: u32,
    failures: Vec<String>,
}

#[expect(clippy::print_stdout, reason = "telling is its purpose")]
impl Story {
    pub(super) fn chapter(&mut self, title: &str) {
        self.chapters += 1;
        println!("\n{}. {title}\n", self.chapters);
    }

    /// Sentences, as a paragraph.
    pub(super) fn tell(&self, text: &str) {
        let mut line = String::new();
        for word in text.split_whitespace() {
            if !line.is_empty() && line.chars().count() + word.chars().count() >= WIDTH {
                println!("   {line}");
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        println!("   {line}\n");
    }

    /// What a program said.
    pub(super) fn say(&self, text: &str) {
        for line in text.lines() {
            println!("   | {line}");
        }
    }

    /// A command and its output.
    pub(super) fn show(&self, command: &str, finished: &Finished) {
        println!("   $ {command}");
        self.say(&finished.stdout);
        println!();
    }

    /// Something that has to be so.
    pub(super) fn check(&mut self, holds: bool, what: &str) {
        self.checks += 1;
        if holds {
            println!("   ok     {what}");
        } else {
            println!("   WRONG  {what}");
            self.failures.push(what.to_owned());
        }
    }

    /// The verdict.
    pub(super) fn end(self) -> anyhow::Result<()> {
        if !self.failures.is_empty() {
            bail!("not as it should be:\n  {}", self.failures.join("\n  "));
        }
        println!("\nAll {} checks hold.", self.checks);
        Ok(())
    }
}
