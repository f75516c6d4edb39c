/*
 * helper/main.c: the privileged helper's executable.  This version has no privileged part: workers
 * reach the application's files with their own rights, and nothing starts this program.  It says so
 * and fails, so that nobody takes it for a working helper.  libc only.
 */
#include <stdio.h>

int main(void)
{
    fputs("ngx-backup-helper: version " BK_VERSION
          " has no privileged helper yet; nginx workers use "
          "their own rights. Leave \"backup_helper off;\" as it is.\n",
          stderr);
    return 1;
}
