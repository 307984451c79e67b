"""Recovery tests have rows of their own (`Proof`), so no restore was ever one."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("backups", "0007_how_often_restores_failed")]

    operations = [
        migrations.AlterField(
            model_name="restore",
            name="mode",
            field=models.CharField(
                choices=[("switch", "Replace the server"), ("beside", "Look into a copy beside it")], max_length=8
            ),
        ),
    ]
