//! Any image with an interpreter will do: one that Paddock has never seen, with nothing in it but one program.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Script, Tenant, admin, assert_end, layout, namespace, status, stdout};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use paddock_crds::{ClusterSandboxPolicy, Phase, Reason};
use paddock_e2e::cluster::command::{call, run};
use paddock_e2e::cluster::{component, images};
use serde_json::json;

/// An interpreter of a language in which every program prints itself, with who runs it and in what environment.
const INTERPRETER: &str = r#"
#include <stdio.h>
#include <unistd.h>
extern char **environ;
int main(int count, char **words) {
    FILE *script = fopen(words[1], "r");
    if (!script) return 3;
    printf("uid %d gid %d groups %d\n", getuid(), getgid(), getgroups(0, 0));
    for (char **word = environ; *word; word++) printf("%s\n", *word);
    for (int c; (c = fgetc(script)) != EOF;) putchar(c);
    return 0;
}
"#;
/// Where the machine is named in the header of a program: 183 is that of 64-bit ARM.
const MACHINE: usize = 18;
const AARCH64: u8 = 183;

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A static program, compiled here.
fn interpreter(folder: &Path) -> PathBuf {
    let (source, program) = (folder.join("echo.c"), folder.join("echo"));
    std::fs::write(&source, INTERPRETER).unwrap();
    call("gcc", &["-static", "-Os", "-o", &program.to_string_lossy(), &source.to_string_lossy()]).unwrap();
    program
}

/// An image that holds one program, in the cluster. `user` is what the image says; `platform` what it says that it is for.
fn image(folder: &Path, program: &Path, name: &str, user: &str, platform: &str) -> String {
    let context = folder.join(name);
    std::fs::create_dir_all(&context).unwrap();
    std::fs::copy(program, context.join("echo")).unwrap();
    let recipe = format!(
        "FROM scratch\nCOPY --chmod=0755 echo /opt/echo\nCOPY --chmod=0755 echo /bin/sh\nENV FROM_THE_IMAGE=yes\nWORKDIR /nowhere\nUSER {user}\nENTRYPOINT [\"/bin/false\"]\n"
    );
    std::fs::write(context.join("Dockerfile"), recipe).unwrap();
    let name = format!("docker.io/strange/{name}:1");
    let archive = folder.join(format!("{}.tar", context.file_name().unwrap().to_string_lossy()));
    let mut build = Command::new("buildah");
    build.args([
        "--storage-driver",
        "vfs",
        "build",
        "--isolation=chroot",
        "--format=oci",
        "--platform",
        platform,
        "--layers=false",
        "-t",
        &name,
    ]);
    run(build.arg("-f").arg(context.join("Dockerfile")).arg(&context)).unwrap();
    call("buildah", &["--storage-driver", "vfs", "push", "--quiet", &name, &format!("oci-archive:{}:{name}", archive.display())]).unwrap();
    call("buildah", &["--storage-driver", "vfs", "rmi", "--force", &name]).unwrap();
    images::load(&layout(), &component::built(&layout()).unwrap(), &archive).unwrap();
    name
}

/// A ClusterSandboxPolicy for this namespace alone, with these images.
async fn offer(tenant: &Tenant, runtimes: &[(&str, &str)]) -> String {
    let runtimes: Vec<_> = runtimes
        .iter()
        .map(|(name, image)| json!({ "name": name, "image": image, "command": [if *name == "busybox" { "/bin/sh" } else { "/opt/echo" }] }))
        .collect();
    let policy = json!({
        "apiVersion": "paddock.dev/v1alpha1", "kind": "ClusterSandboxPolicy", "metadata": { "name": tenant.name },
        "spec": { "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": tenant.name } }, "runtimes": runtimes },
    });
    let api: Api<ClusterSandboxPolicy> = Api::all(tenant.client.clone());
    api.patch(&tenant.name, &PatchParams::apply("e2e").force(), &Patch::Apply(&policy)).await.unwrap();
    tenant.name.clone()
}

#[tokio::test]
async fn an_image_that_holds_one_program_is_enough() {
    namespace("images", json!({}), |tenant| async move {
        let folder = Folder(std::env::temp_dir().join(format!("paddock-images-{}", std::process::id())));
        std::fs::create_dir_all(&folder.0).unwrap();
        let program = interpreter(&folder.0);
        let mut foreign = std::fs::read(&program).unwrap();
        foreign[MACHINE] = AARCH64;
        let arm = folder.0.join("arm");
        std::fs::write(&arm, foreign).unwrap();
        let policy = offer(
            &tenant,
            &[
                ("root", &image(&folder.0, &program, "root", "0:0", "linux/amd64")),
                ("somebody", &image(&folder.0, &program, "somebody", "1234:99", "linux/amd64")),
                ("arm-program", &image(&folder.0, &arm, "arm-program", "0", "linux/amd64")),
                ("arm-image", &image(&folder.0, &arm, "arm-image", "0", "linux/arm64")),
                ("busybox", &image(&folder.0, Path::new("/bin/busybox"), "busybox", "root", "linux/amd64")),
                ("nowhere", "docker.io/strange/nowhere:1"),
            ],
        )
        .await;
        let script = |runtime: &str| {
            Script::shell("hello from a strange land\n").with(json!({ "policyRef": { "name": policy }, "script": { "runtime": runtime } }))
        };
        for runtime in ["root", "somebody"] {
            let run = tenant.run(script(runtime)).await;
            assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
            let told = stdout(&run);
            let mut lines: Vec<&str> = told.lines().collect();
            assert_eq!(lines.remove(0), "uid 65532 gid 65532 groups 1", "whoever the image says that it is");
            assert_eq!(lines.pop(), Some("hello from a strange land"));
            lines.retain(|line| !line.starts_with("PADDOCK_RUN="));
            lines.sort_unstable();
            let documented = [
                "HOME=/workspace",
                "LANG=C.UTF-8",
                "PADDOCK_RESULT=/workspace/.paddock-result.json",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TMPDIR=/workspace",
            ];
            assert_eq!(lines, documented, "the environment is the documented one, whatever the image sets");
        }
        // One with a shell in it, that was made for something else.
        let text = Script::shell("echo $((6 * 7)); [ -w / ] || echo read-only; exit 5")
            .with(json!({ "policyRef": { "name": policy }, "script": { "runtime": "busybox" } }));
        let run = tenant.run(text).await;
        assert_end(&run, &Phase::Failed, &Reason::Failed);
        assert_eq!((stdout(&run).as_str(), status(&run).result.unwrap().exit_code), ("42\nread-only\n", Some(5)));
        // A registry would not even give an image for another machine; here it was imported as it is.
        for runtime in ["arm-program", "arm-image"] {
            let run = tenant.run(script(runtime)).await;
            assert_end(&run, &Phase::StartFailed, &Reason::InterpreterUnavailable);
            assert!(status(&run).message.unwrap().contains("made for another machine"), "{:?}", status(&run).message);
        }
        let run = tenant.run(script("nowhere")).await;
        assert_end(&run, &Phase::StartFailed, &Reason::ImageUnavailable);
        assert!(status(&run).message.unwrap().contains("docker.io/strange/nowhere:1"), "{:?}", status(&run).message);
        let api: Api<ClusterSandboxPolicy> = Api::all(admin().await);
        api.delete(&policy, &DeleteParams::default()).await.unwrap();
    })
    .await;
}

/// What scanners and makers of SBOMs look for.
#[test]
fn the_images_of_runtimes_tell_what_is_in_them() {
    let archives = images::build_base(&layout(), &|_| {}).unwrap();
    for (image, package) in [("python_", "python3-minimal"), ("shell_", "bash"), ("node_", "libstdc++6")] {
        let archive = archives.iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(image)).unwrap();
        let read = |path: &str| call("tar", &["--extract", "--to-stdout", "--file", &archive.to_string_lossy(), path]).unwrap();
        let manifest: serde_json::Value =
            serde_json::from_str(&read(&format!("blobs/{}", images::digest(archive).unwrap().replace(':', "/")))).unwrap();
        let layer = manifest["layers"][0]["digest"].as_str().unwrap().replace(':', "/");
        let line = format!("tar -xOf '{}' 'blobs/{layer}' | tar -xzO --wildcards '*var/lib/dpkg/status'", archive.display());
        let recorded = call("sh", &["-c", &line]).unwrap();
        let entry = recorded.split("\n\n").find(|entry| entry.starts_with(&format!("Package: {package}\n"))).unwrap();
        assert!(entry.contains("\nVersion: ") && entry.contains("\nStatus: install ok installed"), "{entry}");
    }
}
