import subprocess
import sys


def test_importing_tables_needs_no_torch():
    code = (
        "import sys, ugt_composer.importing.run, ugt_composer.importing.options; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'composer', 'streaming')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
