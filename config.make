# Runs when nginx's Makefile has just been written.  Gives this module's objects, and no others, the flags that the
# project's own Makefile gives them, and header dependencies of their own.

for bk_folder in $bk_core_folders helper nginx; do
    cat << END                                            >> $NGX_MAKEFILE

$NGX_OBJS/addon/$bk_folder/%.o: CFLAGS += -std=gnu11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -MMD -MP \\
	-DBK_VERSION='"$bk_version"'
-include \$(wildcard $NGX_OBJS/addon/$bk_folder/*.d)

END
done
