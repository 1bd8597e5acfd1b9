//! Campaigns against a chandler binary. Each ends with one line of JSON.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "../campaigns.rs"]
mod campaigns;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> anyhow::Result<()> {
    campaigns::main()
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    eprintln!("programs are traced on 64-bit x86 Linux alone");
}
