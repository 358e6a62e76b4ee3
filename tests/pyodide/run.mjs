// node run.mjs PYODIDE_FOLDER REPOSITORY HOST_FOLDER memory|host [pytest arguments]
// Runs pytest in Pyodide. REPOSITORY is mounted; the tests' temporary files live in Emscripten's memory file system,
// or in HOST_FOLDER through Emscripten's NODEFS.
import { pathToFileURL } from "node:url";

const [folder, repository, host, filesystem, ...args] = process.argv.slice(2);
const { loadPyodide } = await import(pathToFileURL(`${folder}/pyodide.mjs`));
const python = await loadPyodide({ env: { HOME: "/home", PYTHONDONTWRITEBYTECODE: "1" } });
const mount = (from, to) => {
    python.FS.mkdirTree(to);
    python.FS.mount(python.FS.filesystems.NODEFS, { root: from }, to);
};
mount(`${folder}/site-packages`, "/site-packages");
mount(repository, "/repository");
if (filesystem === "host") mount(host, "/host");
const basetemp = filesystem === "host" ? "/host/pytest" : "/tmp/pytest";
// No watchdog: it is a thread.
python.globals.set("arguments", ["-p", "no:cacheprovider", "-o", "faulthandler_timeout=0", "-p", "emscripten_capabilities", "--basetemp", basetemp, ...args]);
const status = python.runPython(`
import os, sys
print(sys.version, sys.platform)
sys.path[:0] = ["/repository", "/repository/tests/pyodide", "/site-packages"]
os.chdir("/repository")
import pytest
int(pytest.main(arguments.to_py()))
`);
process.exit(status);
